//! A host pattern a line, as under `hosts`.

use super::super::pattern::{Pattern, Refusal};
use super::{Reader, Said, before};
use crate::engine::name::Name;
use enforcer_common::limits::NAME_BYTES;

pub(super) fn line(line: &[u8], reader: &mut Reader<'_>) {
    let line = before(line, |byte| byte == b'#');
    if line.is_empty() {
        return;
    }
    if let Some(said) = plain(line) {
        return reader.said(said);
    }
    let Ok(text) = std::str::from_utf8(line) else { return reader.not_utf8() };
    match Pattern::new(text) {
        Ok(Pattern::Exact(name)) => reader.said(said(&name, true, false)),
        Ok(Pattern::Suffix { domain, apex }) => reader.said(said(&domain, apex, true)),
        Ok(Pattern::Glob(glob)) => reader.said(Said::Glob(glob)),
        Err(refusal) => reader.mistake(refusal),
    }
}

fn said(name: &Name, itself: bool, below: bool) -> Said<'_> {
    Said::Name { domain: name.as_str(), itself, below, except: false }
}

/// Reads what nearly every line is, a name in canonical form, ten times as fast as `Pattern::new`. None: it is not that.
fn plain(line: &[u8]) -> Option<Said<'_>> {
    let (domain, itself, below) = match line {
        [b'*', b'.', domain @ ..] => (domain, false, true),
        [b'.', domain @ ..] => (domain, true, true),
        domain => (domain, true, false),
    };
    canonical(domain).map(|domain| Said::Name { domain, itself, below, except: false })
}

/// The bytes, if they are a host name in canonical form.
pub(super) fn canonical(domain: &[u8]) -> Option<&str> {
    if domain.is_empty() || domain.len() > NAME_BYTES {
        return None;
    }
    let mut letters = false;
    for label in domain.split(|byte| *byte == b'.') {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        for byte in label {
            match byte {
                b'a'..=b'z' => letters = true,
                b'0'..=b'9' | b'-' | b'_' => {}
                _ => return None,
            }
        }
    }
    // Without one it may be an address.
    if !letters {
        return None;
    }
    std::str::from_utf8(domain).ok()
}

/// Hands over the host name that this is, for formats that know nothing but names.
pub(super) fn with_name<T>(text: &[u8], then: impl FnOnce(&str) -> T) -> Result<T, Refusal> {
    if let Some(name) = canonical(text) {
        return Ok(then(name));
    }
    let text = std::str::from_utf8(text)
        .map_err(|_| Refusal::new("the line is not UTF-8", "save the file as UTF-8 text"))?;
    match Pattern::new(text)? {
        Pattern::Exact(name) => Ok(then(name.as_str())),
        other => Err(Refusal::new(
            format!("`{other}` is a pattern, where this format has a host name"),
            "write it into a list of the format \"domains\"",
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::model::Action;
    use super::super::{ListFormat, Reason, tests};
    use super::*;

    #[test]
    fn lines_are_patterns_and_the_rest_is_counted() {
        let text = b"\xef\xbb\xbfa.example\r\n# words\n\n  .B.example \n*.c.example # why\nads-*.example\n\
                     b\xc3\xbccher.example\n192.0.2.1\nhttp://x.example/\n\xff\n";
        let (said, tally) = tests::read(ListFormat::Domains, Action::Deny, text);
        let want = ["a.example", ".b.example", "*.c.example", "ads-*.example", "xn--bcher-kva.example"];
        assert_eq!(said, want);
        assert_eq!(tally.skipped[&Reason::Mistake], 3);
        let warning = tally.warning().unwrap().to_string();
        assert!(warning.starts_with("warning: l.txt:8:1: 3 lines are not understood"), "{warning}");
        assert!(warning.contains("192.0.2.1"), "{warning}");
    }

    proptest! {
        /// The short way says what the long way says, or leaves the line to it.
        #[test]
        fn plain_lines_are_what_patterns_are(line in "[.*]?[.]?[a-c0-9_.-]{0,12}(\\.[a-c0-9]{1,70}){0,4}") {
            if let Some(Said::Name { domain, itself, below, .. }) = plain(line.as_bytes()) {
                let (name, want) = match Pattern::new(&line).unwrap() {
                    Pattern::Exact(name) => (name, (true, false)),
                    Pattern::Suffix { domain, apex } => (domain, (apex, true)),
                    Pattern::Glob(glob) => panic!("{glob}"),
                };
                prop_assert_eq!((name.as_str(), (itself, below)), (domain, want));
            }
        }
    }
}
