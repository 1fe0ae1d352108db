//! Answers that are refused, because they lead where nothing is ever denied or bring too many addresses: told, but not as often as their owners would like.

use std::collections::HashMap;

use enforcer_common::Addr;
use enforcer_common::verdict::BootNanos;

use super::name::Name;

/// So long what was told is not told again.
const QUIET: BootNanos = 600_000_000_000;
/// What is remembered as told. Full of fresh ones: others are held back.
const TOLD: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    Binding(Name, Addr),
    /// The account that is full.
    Quota(u64),
}

#[derive(Debug, Default)]
pub(super) struct Refused {
    told: HashMap<What, BootNanos>,
    held_back: u64,
}

impl Refused {
    /// Whether it is to be told, and how many were not since the last that was.
    pub(super) fn tell(&mut self, what: What, now: BootNanos) -> Option<u64> {
        let fresh = |then: BootNanos| now.saturating_sub(then) < QUIET;
        if self.told.len() >= TOLD {
            self.told.retain(|_, then| fresh(*then));
        }
        let known = self.told.get(&what).is_some_and(|then| fresh(*then));
        if known || self.told.len() >= TOLD {
            self.held_back += 1;
            return None;
        }
        self.told.insert(what, now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_once_in_a_while_and_the_rest_is_counted() {
        let what = |n: usize, last| {
            let name = Name::from_text(&format!("n{n}.example")).unwrap();
            What::Binding(name, Addr::from_v4([127, 0, 0, last]))
        };
        let mut refused = Refused::default();
        assert_eq!(refused.tell(what(0, 1), 5), Some(0));
        assert_eq!(refused.tell(what(0, 1), 6), None);
        assert_eq!(refused.tell(what(0, 2), 7), Some(1));
        assert_eq!(refused.tell(what(0, 1), 5 + QUIET), Some(0));
        // A flood of names has an end, until it is forgotten.
        let now = 6 + QUIET;
        let told = (1..2 * TOLD).filter(|&n| refused.tell(what(n, 1), now).is_some()).count();
        assert!((TOLD - 2..=TOLD).contains(&told) && refused.told.len() <= TOLD, "{told}");
        let held_back = refused.held_back;
        assert!(held_back > 0);
        assert_eq!(refused.tell(what(1, 1), now + QUIET), Some(held_back));
        assert!(refused.told.len() < 4);
    }
}
