//! List files: many host patterns, one a line. They are read line by line and never kept as text.

use std::collections::BTreeMap;
use std::sync::Arc;

use globset::Glob;

use super::model::List;
use super::pattern::Pattern;
use crate::engine::name::Name;
use enforcer_common::limits::NAME_BYTES;

/// How a list file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListFormat {
    /// A host pattern a line, as under `hosts`; `#` begins a comment.
    Domains,
}

impl ListFormat {
    pub const ALL: [Self; 1] = [Self::Domains];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Domains => "domains",
        }
    }
}

/// The bytes of every list file that a policy set names, by path.
#[derive(Clone, Debug, Default)]
pub struct Lists(pub BTreeMap<Arc<str>, Vec<u8>>);

/// What one line says.
#[derive(Debug)]
pub enum Said<'a> {
    Name { domain: &'a str, itself: bool, below: bool },
    Glob(Glob),
}

/// Lines of one list that say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub path: Arc<str>,
    pub lines: u64,
    /// The first of them, from 1, and what is wrong with it.
    pub line: u32,
    pub why: String,
    pub hint: String,
}

impl Lists {
    /// Hands over what each line says.
    pub fn read(&self, list: &List, mut take: impl FnMut(Said<'_>)) -> Option<Skipped> {
        let bytes = self.0.get(&list.path).map_or(&[][..], Vec::as_slice);
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut skipped: Option<Skipped> = None;
        for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            let line = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
            if line.is_empty() {
                continue;
            }
            if let Some(said) = plain(line) {
                take(said);
                continue;
            }
            match pattern(line) {
                Ok(Pattern::Exact(name)) => take(name_said(&name, true, false)),
                Ok(Pattern::Suffix { domain, apex }) => take(name_said(&domain, apex, true)),
                Ok(Pattern::Glob(glob)) => take(Said::Glob(glob)),
                Err((why, hint)) => {
                    let first = || Skipped { path: list.path.clone(), lines: 0, line: number, why, hint };
                    skipped.get_or_insert_with(first).lines += 1;
                }
            }
        }
        skipped
    }
}

fn name_said(name: &Name, itself: bool, below: bool) -> Said<'_> {
    Said::Name { domain: name.as_str(), itself, below }
}

fn pattern(line: &[u8]) -> Result<Pattern, (String, String)> {
    let text = std::str::from_utf8(line)
        .map_err(|_| ("the line is not UTF-8".to_owned(), "save the file as UTF-8 text".to_owned()))?;
    Pattern::new(text).map_err(|refusal| (refusal.message, refusal.hint))
}

/// Reads what nearly every line is, a name in canonical form, ten times as fast as `Pattern::new`. None: it is not that.
fn plain(line: &[u8]) -> Option<Said<'_>> {
    let (domain, itself, below) = match line {
        [b'*', b'.', domain @ ..] => (domain, false, true),
        [b'.', domain @ ..] => (domain, true, true),
        domain => (domain, true, false),
    };
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
    std::str::from_utf8(domain).ok().map(|domain| Said::Name { domain, itself, below })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::model::Origin;
    use super::*;

    fn read(text: &[u8]) -> (Vec<String>, Option<Skipped>) {
        let path: Arc<str> = "l.txt".into();
        let origin = Origin { file: "p.toml".into(), line: 1, column: 1 };
        let list = List { path: path.clone(), format: ListFormat::Domains, origin };
        let mut said = Vec::new();
        let skipped = Lists(BTreeMap::from([(path, text.to_vec())])).read(&list, |one| {
            said.push(match one {
                Said::Name { domain, itself: true, below: false } => domain.to_owned(),
                Said::Name { domain, itself, .. } => format!("{}.{domain}", if itself { "" } else { "*" }),
                Said::Glob(glob) => glob.glob().to_owned(),
            });
        });
        (said, skipped)
    }

    #[test]
    fn lines_are_patterns_and_the_rest_is_counted() {
        let text = b"\xef\xbb\xbfa.example\r\n# words\n\n  .B.example \n*.c.example # why\nads-*.example\n\
                     b\xc3\xbccher.example\n192.0.2.1\nhttp://x.example/\n\xff\n";
        let (said, skipped) = read(text);
        let want = ["a.example", ".b.example", "*.c.example", "ads-*.example", "xn--bcher-kva.example"];
        assert_eq!(said, want);
        let skipped = skipped.unwrap();
        assert_eq!((skipped.lines, skipped.line), (3, 8));
        assert!(skipped.why.contains("192.0.2.1"), "{}", skipped.why);
    }

    proptest! {
        /// The short way says what the long way says, or leaves the line to it.
        #[test]
        fn plain_lines_are_what_patterns_are(line in "[.*]?[.]?[a-c0-9_.-]{0,12}(\\.[a-c0-9]{1,70}){0,4}") {
            if let Some(Said::Name { domain, itself, below }) = plain(line.as_bytes()) {
                let (name, want) = match Pattern::new(&line).unwrap() {
                    Pattern::Exact(name) => (name, (true, false)),
                    Pattern::Suffix { domain, apex } => (domain, (apex, true)),
                    Pattern::Glob(glob) => panic!("{glob}"),
                };
                prop_assert_eq!((name.as_str(), (itself, below)), (domain, want));
            }
        }

        #[test]
        fn any_bytes_are_lines(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            read(&bytes);
        }
    }
}
