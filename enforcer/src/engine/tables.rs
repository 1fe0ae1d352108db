//! A policy's names as the kernel wants them: suffix hashes, and automata for the globs that are no suffixes.
//!
//! The matcher is `enforcer_common::name`; here its tables are made, and asked by user space.

mod automata;

use std::collections::HashMap;

use enforcer_common::name::{
    BLOCK, Domain, Header, Match, Matching, Name as Text, SuffixHash, TEXT, match_name,
};
use enforcer_common::name::{Tables as Matchable, placed};
use enforcer_common::repeat::{Repeat, Step, plainly};

use super::name::Name;
use super::policy::{Action, Pattern, PolicySet};

pub use automata::{Budget, Glob};

/// One generation of tables, ready to be copied into maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    pub header: Header,
    /// Suffix hash → index into `domains`.
    pub names: Vec<(u64, u32)>,
    /// Each different saying once.
    pub domains: Vec<Domain>,
    pub automata: Vec<[u32; BLOCK]>,
    /// States of all automata.
    pub states: usize,
    /// Globs that would make the automata too large: their place in the policy set and their text. The daemon
    /// matches them, after the answer was delivered.
    pub late: Vec<(u32, String)>,
}

impl Tables {
    /// `key` is random: see `SuffixHash`.
    pub fn new(set: &PolicySet, key: [u64; 2], budget: Budget) -> Self {
        let mut domains: HashMap<&str, Domain> = HashMap::new();
        let mut globs = Vec::new();
        for (place, rule) in set.rules.iter().enumerate() {
            let place = u32::try_from(place).unwrap_or(u32::MAX);
            let said = said(rule.action, placed(place, rule.id));
            for pattern in &rule.hosts {
                let (name, itself, below) = match pattern {
                    Pattern::Exact(name) => (name, said, Match::NONE),
                    Pattern::Suffix { domain, apex: true } => (domain, said, said),
                    Pattern::Suffix { domain, apex: false } => (domain, Match::NONE, said),
                    Pattern::Glob(glob) => {
                        globs.push(Glob { place, text: glob.glob(), regex: glob.regex(), said });
                        continue;
                    }
                };
                let domain = domains.entry(name.as_str()).or_insert(Domain::NONE);
                domain.itself = domain.itself.merge(itself);
                domain.below = domain.below.merge(below);
            }
        }
        Self::build(domains, &globs, key, budget)
    }

    /// Matches nothing.
    pub fn empty() -> Self {
        Self::build(HashMap::new(), &[], [0; 2], Budget::default())
    }

    fn build(named: HashMap<&str, Domain>, globs: &[Glob<'_>], key: [u64; 2], budget: Budget) -> Self {
        let mut sayings = Sayings::default();
        let names = named.into_iter().map(|(name, domain)| (suffix_hash(key, name), sayings.index(domain)));
        let names = names.collect();
        let made = automata::build(globs, budget, &mut |said| {
            sayings.index(Domain { itself: said, ..Domain::NONE })
        });
        Self {
            header: Header { key, ..made.header },
            names,
            domains: sayings.all,
            automata: made.words,
            states: made.states,
            late: made.late.iter().map(|glob| (glob.place, glob.text.to_owned())).collect(),
        }
    }

    /// What the tables say about a name: what the kernel would say. None: the kernel leaves it to the daemon.
    pub fn matches(index: &Index<'_>, name: &Name) -> Option<Match> {
        let bytes = name.as_str().as_bytes();
        if bytes.contains(&b'\\') || bytes.len() >= TEXT {
            return None;
        }
        let mut text = Text::EMPTY;
        for label in name.as_str().split('.') {
            text.begin_label();
            let at = text.len as usize;
            text.text[at..at + label.len()].copy_from_slice(label.as_bytes());
            text.len += label.len() as u32;
        }
        let mut asked = Asked { text, index };
        match_name(&mut asked, false);
        Some(asked.text.matched)
    }

    /// For looking up many names.
    pub fn index(&self) -> Index<'_> {
        Index { tables: self, names: self.names.iter().copied().collect() }
    }
}

fn said(action: Action, by: u64) -> Match {
    match action {
        Action::Allow => Match { allow: by, ..Match::NONE },
        Action::Deny => Match { deny: by, ..Match::NONE },
        Action::Audit => Match { audit: by, ..Match::NONE },
    }
}

/// The key of a domain in the map of names.
pub fn suffix_hash(key: [u64; 2], domain: &str) -> u64 {
    let mut hash = SuffixHash::new(key);
    let reversed: Vec<u8> = domain.bytes().rev().collect();
    let mut words = reversed.chunks_exact(8);
    for word in &mut words {
        hash.push(little_endian(word));
    }
    hash.finish(little_endian(words.remainder()), domain.len() as u32)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Numbers for what is said about domains.
#[derive(Default)]
struct Sayings {
    all: Vec<Domain>,
    known: HashMap<Domain, u32>,
}

impl Sayings {
    fn index(&mut self, domain: Domain) -> u32 {
        *self.known.entry(domain).or_insert_with(|| {
            self.all.push(domain);
            u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

/// Tables with the map of names as a map: the same questions as in the kernel.
#[derive(Debug)]
pub struct Index<'a> {
    tables: &'a Tables,
    names: HashMap<u64, u32>,
}

impl Matchable for Index<'_> {
    fn header(&self) -> &Header {
        &self.tables.header
    }

    fn domain(&self, hash: u64) -> Option<&Domain> {
        self.names.get(&hash).and_then(|index| self.domain_at(*index))
    }

    fn domain_at(&self, index: u32) -> Option<&Domain> {
        self.tables.domains.get(index as usize)
    }

    fn word(&self, index: u32) -> u32 {
        let block = self.tables.automata.get(index as usize / BLOCK);
        block.map_or(0, |block| block[index as usize % BLOCK])
    }
}

impl Repeat for Index<'_> {
    fn repeat<S: Step<C>, C>(times: u32, context: &mut C) {
        plainly::<S, C>(times, context);
    }
}

struct Asked<'a, 'b> {
    text: Text,
    index: &'a Index<'b>,
}

impl<'b> Matching for Asked<'_, 'b> {
    type Tables = Index<'b>;

    fn name(&mut self) -> &mut Text {
        &mut self.text
    }

    fn tables(&self) -> &Index<'b> {
        self.index
    }
}

#[cfg(test)]
mod tests {
    use enforcer_common::name::rule;
    use enforcer_common::verdict::NO_RULE;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::compile::{Claims, Compiled};
    use crate::engine::policy::{Origin, Rule, rule_id};

    const KEY: [u64; 2] = [17, 42];

    fn set(rules: &[(Action, &[&str])]) -> PolicySet {
        let rules = rules.iter().enumerate().map(|(place, (action, hosts))| {
            let name = format!("r{place}");
            Rule {
                id: rule_id(&name),
                name,
                description: None,
                action: *action,
                // What no policy could say is left out.
                hosts: hosts.iter().filter_map(|host| Pattern::new(host).ok()).collect(),
                networks: Vec::new(),
                origin: Origin { file: "test".into(), line: 1, column: 1 },
            }
        });
        PolicySet { rules: rules.collect() }
    }

    /// What the tables say and what the daemon's matcher, which is made of globset, says.
    fn both(set: &PolicySet, tables: &Tables, name: &str) -> (Option<Claims>, Claims) {
        let name = Name::from_text(name).unwrap();
        let said = Tables::matches(&tables.index(), &name);
        let said = said.map(|said| Claims {
            allow: rule(said.allow),
            deny: rule(said.deny),
            audit: rule(said.audit),
        });
        (said, Compiled::new(set).unwrap().claims(&name))
    }

    #[test]
    fn the_documented_rows() {
        let rows: [(&str, [bool; 4]); 7] = [
            ("example.com", [true, false, false, false]),
            ("*.example.com", [false, true, true, false]),
            (".example.com", [true, true, true, false]),
            ("*example.com", [true, true, true, true]),
            ("?xample.com", [true, false, false, false]),
            ("{a,not}*example.com", [false, true, true, true]),
            ("*[a-d].*.com", [false, true, true, false]),
        ];
        for (pattern, wants) in rows {
            let set = set(&[(Action::Deny, &[pattern])]);
            let tables = Tables::new(&set, KEY, Budget::default());
            let names = ["example.com", "a.example.com", "a.b.example.com", "notexample.com"];
            for (name, want) in names.into_iter().zip(wants) {
                let (said, by_globset) = both(&set, &tables, name);
                assert_eq!(said, Some(by_globset), "{pattern} {name}");
                assert_eq!(by_globset.deny != NO_RULE, want, "{pattern} {name}");
            }
        }
    }

    #[test]
    fn globs_that_multiply_get_automata_of_their_own_or_are_late() {
        let text: Vec<String> = (0..200u32).map(|n| format!("*{n:03}*{:03}*x", n * 7 % 1000)).collect();
        let hosts: Vec<&str> = text.iter().map(String::as_str).collect();
        let set = set(&[(Action::Deny, &hosts)]);
        let tables = Tables::new(&set, KEY, Budget { words: 1 << 16, bytes: 1 << 16 });
        assert!(tables.header.automata > 1 && !tables.late.is_empty(), "{:?}", tables.header.automata);
        assert!(tables.automata.len() * BLOCK <= (1 << 16) + BLOCK);
        let late: Vec<&str> = tables.late.iter().map(|(_, text)| text.as_str()).collect();
        for (n, host) in hosts.iter().enumerate() {
            let (said, _) = both(&set, &tables, &format!("a{n:03}b{:03}cx", n * 7 % 1000));
            assert_eq!(said.unwrap().deny == NO_RULE, late.contains(host), "{host}");
        }
    }

    #[test]
    fn escaped_names_are_left_to_the_daemon_and_nothing_matches_nothing() {
        let set = set(&[(Action::Deny, &["*"])]);
        let tables = Tables::new(&set, KEY, Budget::default());
        let odd = Name::from_labels([b"a b".as_slice(), b"example"]).unwrap();
        assert_eq!(Tables::matches(&tables.index(), &odd), None);
        let nothing = Tables::empty();
        let name = Name::from_text("a.example").unwrap();
        assert_eq!(Tables::matches(&nothing.index(), &name), Some(Match::NONE));
    }

    fn pattern() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "a", "b", "ab", "-", ".", ".a", "*", "?", "[ab]", "[!a]", "{a,b.b}", "1",
        ]);
        prop::collection::vec(part, 1..7).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

        #[test]
        fn random_names_and_globs_agree_with_globset(
            patterns in prop::collection::vec((pattern(), 0usize..3), 1..12),
            names in prop::collection::vec("[ab1-]{1,9}(\\.[ab1-]{1,9}){0,4}", 1..30),
        ) {
            let rules: Vec<(Action, [&str; 1])> =
                patterns.iter().map(|(text, action)| (Action::ALL[*action], [text.as_str()])).collect();
            let rules: Vec<(Action, &[&str])> = rules.iter().map(|(action, hosts)| (*action, hosts.as_slice())).collect();
            let set = set(&rules);
            let tables = Tables::new(&set, KEY, Budget::default());
            prop_assert!(tables.late.is_empty());
            for name in &names {
                let (said, by_globset) = both(&set, &tables, name);
                prop_assert_eq!(said, Some(by_globset), "{} {:?}", name, patterns);
            }
        }
    }
}
