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
