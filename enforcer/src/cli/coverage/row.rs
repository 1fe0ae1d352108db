//! From two attempts, one allowed and one denied, to a verdict on a way.

use std::io;

use serde::Serialize;

use crate::engine::record::LayerName;
use crate::sys::ways::Way;

/// What came of an attempt.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) error: Option<io::Error>,
    /// A packet was seen.
    pub(super) left: bool,
    /// Who refused something meanwhile.
    pub(super) caught: Vec<LayerName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The call failed with EPERM.
    Refused,
    /// The call did not fail, or in another way, and nothing left.
    Dropped,
    /// It is not meant to be refused.
    Outside,
    /// This host has no such way.
    Absent,
    /// The way does not work where it is allowed, or nobody knows who refused it: this proves nothing.
    Unproven,
    Through,
}

impl Verdict {
    pub(super) const ALL: [Self; 6] =
        [Self::Refused, Self::Dropped, Self::Outside, Self::Absent, Self::Unproven, Self::Through];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::Outside => "outside",
            Self::Absent => "absent",
            Self::Unproven => "UNPROVEN",
            Self::Through => "THROUGH",
        }
    }

    pub(super) fn is_hole(self) -> bool {
        matches!(self, Self::Unproven | Self::Through)
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    pub(super) way: &'static str,
    pub(super) what: &'static str,
    pub(super) verdict: Verdict,
    pub(super) caught: Vec<LayerName>,
    /// Of the denied attempt.
    pub(super) errno: Option<i32>,
    pub(super) why: Option<String>,
}

impl Row {
    pub(super) fn new(way: &Way, allowed: Tried, denied: Tried) -> Self {
        let errno = denied.error.as_ref().and_then(io::Error::raw_os_error);
        let (verdict, why) = judge(way.outside, &allowed, &denied);
        Self { way: way.name, what: way.what, verdict, caught: denied.caught, errno, why }
    }

    /// It cannot be tried here.
    pub(super) fn absent(way: &Way, error: &io::Error) -> Self {
        let verdict = if is_lacking(error) { Verdict::Absent } else { Verdict::Unproven };
        let why = Some(format!("cannot be tried: {error}"));
        Self { way: way.name, what: way.what, verdict, caught: Vec::new(), errno: None, why }
    }
}

fn judge(outside: Option<&str>, allowed: &Tried, denied: &Tried) -> (Verdict, Option<String>) {
    if !allowed.left {
        return match &allowed.error {
            Some(error) if is_lacking(error) => (Verdict::Absent, Some(error.to_string())),
            Some(error) => (Verdict::Unproven, Some(format!("fails where it is allowed: {error}"))),
            None => (Verdict::Unproven, Some("nothing is sent where it is allowed".to_owned())),
        };
    }
    let permission = denied.error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::EPERM));
    match (denied.left, denied.caught.is_empty(), outside) {
        (true, _, Some(why)) => (Verdict::Outside, Some(why.to_owned())),
        (true, _, None) => (Verdict::Through, None),
        (false, false, _) if permission => (Verdict::Refused, None),
        (false, false, _) => (Verdict::Dropped, None),
        (false, true, _) => {
            let error = denied.error.as_ref().map_or_else(|| "no error".to_owned(), ToString::to_string);
            (Verdict::Unproven, Some(format!("nothing left ({error}), but no layer of enforcer refused it")))
        }
    }
}

/// The kernel does not have what the way needs, or does not let anybody use it.
fn is_lacking(error: &io::Error) -> bool {
    let lacking = [
        libc::ENOSYS,
        libc::ENOPROTOOPT,
        libc::EPROTONOSUPPORT,
        libc::ESOCKTNOSUPPORT,
        libc::EOPNOTSUPP,
        libc::EAFNOSUPPORT,
        libc::EADDRNOTAVAIL,
    ];
    error.raw_os_error().is_some_and(|errno| lacking.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(errno: i32, left: bool, caught: &[LayerName]) -> Tried {
        let error = (errno != 0).then(|| io::Error::from_raw_os_error(errno));
        Tried { error, left, caught: caught.to_vec() }
    }

    #[test]
    fn verdicts_rows() {
        let by = [LayerName::LsmConnect];
        let works = || tried(0, true, &[]);
        let rows = [
            (None, works(), tried(libc::EPERM, false, &by), Verdict::Refused),
            (None, works(), tried(libc::ETIMEDOUT, false, &by), Verdict::Dropped),
            (None, works(), tried(0, false, &by), Verdict::Dropped),
            // What was seen counts, whatever anybody says.
            (None, works(), tried(libc::EPERM, true, &by), Verdict::Through),
            (None, works(), tried(0, true, &[]), Verdict::Through),
            (Some("why"), works(), tried(0, true, &[]), Verdict::Outside),
            (Some("why"), works(), tried(libc::EPERM, false, &by), Verdict::Refused),
            (None, works(), tried(libc::EPERM, false, &[]), Verdict::Unproven),
            (None, tried(libc::ESOCKTNOSUPPORT, false, &[]), tried(libc::EPERM, false, &by), Verdict::Absent),
            (None, tried(libc::EPERM, false, &[]), tried(libc::EPERM, false, &by), Verdict::Unproven),
            (None, tried(0, false, &[]), tried(libc::EPERM, false, &by), Verdict::Unproven),
        ];
        for (outside, allowed, denied, wanted) in rows {
            let (verdict, why) = judge(outside, &allowed, &denied);
            assert_eq!(verdict, wanted, "{allowed:?} {denied:?}: {why:?}");
            assert_eq!(
                why.is_none(),
                matches!(wanted, Verdict::Refused | Verdict::Dropped | Verdict::Through)
            );
        }
    }
}
