//! List files: many host patterns or networks, one a line. They are read line by line and never kept as text.
//!
//! One file a format: each takes a line and says what it names, or why it names nothing.

mod adblock;
mod domains;
mod hosts;
mod networks;
mod rpz;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use globset::Glob;
use ipnetwork::IpNetwork;
use schemars::JsonSchema;
use serde::Serialize;

use super::diagnostic::{Diagnostic, Position, Severity, escape};
use super::model::{Action, List};
use super::pattern::Refusal;

/// How a list file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ListFormat {
    /// A host pattern a line, as under `hosts`; `#` begins a comment.
    Domains,
    /// hosts(5): `0.0.0.0 name`. Each name means itself alone.
    Hosts,
    /// `||name^` means the name and what is below it, `@@||name^` excepts it. Filters about less than a host say nothing.
    Adblock,
    /// A response policy zone: `name CNAME .`; `rpz-passthru.` excepts.
    Rpz,
    /// A network or an address a line; `#` and `;` begin a comment.
    Networks,
}

impl ListFormat {
    pub const ALL: [Self; 5] = [Self::Domains, Self::Hosts, Self::Adblock, Self::Rpz, Self::Networks];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Domains => "domains",
            Self::Hosts => "hosts",
            Self::Adblock => "adblock",
            Self::Rpz => "rpz",
            Self::Networks => "networks",
        }
    }
}

/// The bytes of every list file that a policy set names, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists(pub BTreeMap<Arc<str>, Vec<u8>>);

/// What one line says.
#[derive(Debug)]
pub enum Said<'a> {
    /// `except`: the rule does not mean these, whatever else the list says.
    Name {
        domain: &'a str,
        itself: bool,
        below: bool,
        except: bool,
    },
    Glob(Glob),
    Network(IpNetwork),
}

/// Why an entry of a list says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is not what the format has.
    Mistake,
    /// hosts: it gives a name an address of another host.
    RealAddress,
    /// hosts: names of the host itself, as every such file has them.
    OwnName,
    /// adblock: it hides parts of pages.
    Cosmetic,
    /// adblock: it is about some requests only (`$third-party`).
    Options,
    /// adblock: it is about paths or parts of addresses.
    Path,
    /// adblock: it is about an address, which a list of networks can name.
    Address,
    /// rpz: it is not triggered by the asked name.
    OtherTrigger,
    /// rpz: it answers with data of its own.
    OtherAction,
    /// rpz: the name does not lie in the zone.
    OutOfZone,
    /// An exception in a list of a rule that does not deny.
    Exception,
}

impl Reason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mistake => "not understood",
            Self::RealAddress => "give a name an address",
            Self::OwnName => "name the host itself",
            Self::Cosmetic => "hide parts of pages",
            Self::Options => "are about some requests only",
            Self::Path => "are about paths",
            Self::Address => "name addresses",
            Self::OtherTrigger => "are not about asked names",
            Self::OtherAction => "answer with data",
            Self::OutOfZone => "lie outside of the zone",
            Self::Exception => "are exceptions, which only a rule that denies can have",
        }
    }
}

/// What a list held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub path: String,
    pub format: ListFormat,
    pub names: u64,
    pub globs: u64,
    pub networks: u64,
    pub exceptions: u64,
    /// Entries that say nothing, by reason.
    pub skipped: BTreeMap<Reason, u64>,
    #[serde(skip)]
    mistake: Option<Mistake>,
}

/// The first of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mistake {
    line: u32,
    why: Refusal,
}

impl Tally {
    fn new(list: &List) -> Self {
        Self {
            path: list.path.to_string(),
            format: list.format,
            names: 0,
            globs: 0,
            networks: 0,
            exceptions: 0,
            skipped: BTreeMap::new(),
            mistake: None,
        }
    }

    pub fn all_skipped(&self) -> u64 {
        self.skipped.values().sum()
    }

    fn said(&self) -> u64 {
        self.names + self.globs + self.networks + self.exceptions
    }

    /// What is hardly meant.
    pub fn warning(&self) -> Option<Diagnostic> {
        let warning = |line: Option<u32>, message, hint| Diagnostic {
            severity: Severity::Warning,
            file: self.path.clone(),
            position: line.map(|line| Position { line, column: 1 }),
            excerpt: None,
            message,
            hint,
        };
        let line = self.mistake.as_ref().map(|first| first.line);
        if self.said() == 0 && self.all_skipped() > 0 {
            let message = format!(
                "nothing in this list says anything as a list of the format \"{}\"",
                self.format.as_str()
            );
            let formats: Vec<_> =
                ListFormat::ALL.iter().map(|format| format!("\"{}\"", format.as_str())).collect();
            let hint = format!("is it of another format? There are {}", formats.join(", "));
            return Some(warning(line, message, hint));
        }
        let first = self.mistake.as_ref()?;
        let count = self.skipped.get(&Reason::Mistake).copied().unwrap_or(0);
        let message = match count {
            1 => format!("a line was skipped: {}", first.why.message),
            _ => {
                format!("{count} lines are not understood and were skipped; the first: {}", first.why.message)
            }
        };
        Some(warning(line, message, first.why.hint.clone()))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): ", escape(&self.path), self.format.as_str())?;
        let count =
            |n: u64, what: &str| (n > 0).then(|| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
        let held = [
            count(self.names, "name"),
            count(self.globs, "glob"),
            count(self.networks, "network"),
            count(self.exceptions, "exception"),
        ];
        let held: Vec<_> = held.into_iter().flatten().collect();
        f.write_str(&if held.is_empty() { "nothing".to_owned() } else { held.join(", ") })?;
        if self.all_skipped() > 0 {
            let why = self.skipped.iter().map(|(reason, count)| format!("{count} {}", reason.as_str()));
            write!(f, "; {} skipped: {}", self.all_skipped(), why.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}

impl Lists {
    /// Hands over what each line says. `action` is that of the rule: only one that denies has exceptions.
    pub fn read(&self, list: &List, action: Action, mut take: impl FnMut(Said<'_>)) -> Tally {
        let bytes = self.0.get(&list.path).map_or(&[][..], Vec::as_slice);
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let excepts = action == Action::Deny;
        let mut reader = Reader { tally: Tally::new(list), line: 0, excepts, take: &mut take };
        let mut zone = rpz::Zone::default();
        for line in bytes.split(|byte| *byte == b'\n') {
            reader.line = reader.line.saturating_add(1);
            match list.format {
                ListFormat::Domains => domains::line(line, &mut reader),
                ListFormat::Hosts => hosts::line(line, &mut reader),
                ListFormat::Adblock => adblock::line(line, &mut reader),
                ListFormat::Rpz => zone.line(line, &mut reader),
                ListFormat::Networks => networks::line(line, &mut reader),
            }
        }
        reader.tally
    }
}

/// Where the formats say what they found.
struct Reader<'a> {
    tally: Tally,
    /// From 1.
    line: u32,
    excepts: bool,
    take: &'a mut dyn FnMut(Said<'_>),
}

impl Reader<'_> {
    fn said(&mut self, said: Said<'_>) {
        let count = match &said {
            Said::Name { except: true, .. } if !self.excepts => return self.skip(Reason::Exception),
            Said::Name { except: true, .. } => &mut self.tally.exceptions,
            Said::Name { .. } => &mut self.tally.names,
            Said::Glob(_) => &mut self.tally.globs,
            Said::Network(_) => &mut self.tally.networks,
        };
        *count += 1;
        (self.take)(said);
    }

    fn skip(&mut self, reason: Reason) {
        *self.tally.skipped.entry(reason).or_default() += 1;
    }

    fn mistake(&mut self, why: Refusal) {
        self.skip(Reason::Mistake);
        let line = self.line;
        self.tally.mistake.get_or_insert(Mistake { line, why });
    }

    fn not_utf8(&mut self) {
        self.mistake(Refusal::new("the line is not UTF-8", "save the file as UTF-8 text"));
    }
}

/// The line up to a comment, without blanks around it.
fn before(line: &[u8], is_comment: impl Fn(u8) -> bool) -> &[u8] {
    line.split(|byte| is_comment(*byte)).next().unwrap_or_default().trim_ascii()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::model::Origin;
    use super::*;

    /// What a list says, a line each, and what it held.
    pub(super) fn read(format: ListFormat, action: Action, text: &[u8]) -> (Vec<String>, Tally) {
        let path: Arc<str> = "l.txt".into();
        let origin = Origin { file: "p.toml".into(), line: 1, column: 1 };
        let list = List { path: path.clone(), format, origin };
        let mut said = Vec::new();
        let tally = Lists(BTreeMap::from([(path, text.to_vec())])).read(&list, action, |one| {
            said.push(match one {
                Said::Name { domain, itself, below, except } => {
                    let shape = match (itself, below) {
                        (true, false) => "",
                        (true, true) => ".",
                        _ => "*.",
                    };
                    format!("{}{shape}{domain}", if except { "!" } else { "" })
                }
                Said::Glob(glob) => glob.glob().to_owned(),
                Said::Network(network) => network.to_string(),
            });
        });
        (said, tally)
    }

    pub(super) fn deny(format: ListFormat, text: &str) -> (Vec<String>, Tally) {
        read(format, Action::Deny, text.as_bytes())
    }

    #[test]
    fn a_list_of_another_format_is_said() {
        let (said, tally) = deny(ListFormat::Domains, "0.0.0.0 a.example\n0.0.0.0 b.example\n");
        assert!(said.is_empty());
        let warning = tally.warning().unwrap().to_string();
        assert!(warning.starts_with("warning: l.txt:1:1: nothing in this list says anything"), "{warning}");
        assert!(warning.contains("\"hosts\""), "{warning}");
        assert_eq!(deny(ListFormat::Domains, "# nothing\n").1.warning(), None);
    }

    #[test]
    fn only_rules_that_deny_have_exceptions() {
        for (action, want) in [(Action::Deny, 1), (Action::Allow, 0), (Action::Audit, 0)] {
            let (said, tally) = read(ListFormat::Adblock, action, b"@@||a.example^\n||b.example^\n");
            assert_eq!((tally.exceptions, said.len()), (want, 1 + want as usize), "{action:?}");
            assert_eq!(tally.skipped.get(&Reason::Exception).copied().unwrap_or(0), 1 - want, "{action:?}");
        }
    }

    #[test]
    fn a_tally_reads_well() {
        let (_, tally) = deny(ListFormat::Adblock, "||a.example^\n@@||b.a.example^\n##.ad\n/banner/*\n/x\n");
        let want =
            "l.txt (adblock): 1 name, 1 exception; 3 skipped: 1 hide parts of pages, 2 are about paths";
        assert_eq!(tally.to_string(), want);
    }

    proptest! {
        #[test]
        fn any_bytes_are_lines(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for format in ListFormat::ALL {
                read(format, Action::Deny, &bytes);
            }
        }

        /// What formats are made of, in any order.
        #[test]
        fn any_words_are_lines(words in prop::collection::vec(prop::sample::select(vec![
            "a.example", "||", "@@", "^", "$", "##", "!", "[", "0.0.0.0", "::1", " ", "\t", "\n", "\r\n", "#", ";", "$ORIGIN",
            "CNAME", "IN", "60", ".", "*.", "rpz-passthru.", "(", ")", "\"", "@", "SOA", "rpz-ip", "é", "1.2.3.0/24", "/",
        ]), 0..40)) {
            for format in ListFormat::ALL {
                read(format, Action::Deny, words.concat().as_bytes());
            }
        }
    }
}
