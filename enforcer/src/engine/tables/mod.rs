//! A policy's names as the kernel wants them: suffix hashes, and automata for the globs that are no suffixes.
//!
//! The matcher is `enforcer_common::name`; here its tables are made, and asked by user space.

mod automata;
mod globs;
mod names;

use std::collections::HashMap;

use enforcer_common::Seats;
use enforcer_common::name::{
    BLOCK, Bucket, Domain, Header, Match, Matching, Name as Text, TEXT, Tables as Matchable, match_name,
    placed,
};
use enforcer_common::repeat::{Repeat, Step, plainly};

use super::name::Name;
use super::policy::{Action, Lists, Pattern, PolicySet, Rule, Said, Tally};

pub use automata::{Budget, Glob};
use names::Names;

/// One generation of tables, ready to be copied into maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    pub header: Header,
    /// Suffix hashes and indices into `domains`.
    pub buckets: Vec<Bucket>,
    /// Of what stands in `buckets`.
    pub filter: Vec<u64>,
    /// Domains that stand in `buckets`.
    pub names: usize,
    /// Each different saying once.
    pub domains: Vec<Domain>,
    pub automata: Vec<[u32; BLOCK]>,
    /// States of all automata.
    pub states: usize,
    /// Globs in all automata.
    pub globs: usize,
    /// Globs that would make the automata too large: their place in the policy set and their text. The daemon
    /// matches them, after the answer was delivered.
    pub late: Vec<(u32, String)>,
}

/// The host patterns of a policy set and its lists, by the place of their rule.
#[derive(Debug)]
pub struct Patterns {
    names: Names,
    pub globs: Vec<(u32, globset::Glob)>,
    /// What each list held.
    pub lists: Vec<Tally>,
}

impl Patterns {
    /// `lists` has every list of the set. `key` is random: see `SuffixHash`.
    pub fn collect(set: &PolicySet, lists: &Lists, key: [u64; 2]) -> Self {
        let (mut names, mut globs, mut tallies) = (Names::new(key), Vec::new(), Vec::new());
        for (place, rule) in (0..).zip(&set.rules) {
            for pattern in &rule.hosts {
                match pattern {
                    Pattern::Exact(name) => names.push(name.as_str(), place, true, false),
                    Pattern::Suffix { domain, apex } => names.push(domain.as_str(), place, *apex, true),
                    Pattern::Glob(glob) => globs.push((place, glob.clone())),
                }
            }
            for list in &rule.lists {
                tallies.push(lists.read(list, rule.action, |said| match said {
                    Said::Name { domain, itself, below, except: false } => {
                        names.push(domain, place, itself, below);
                    }
                    Said::Name { domain, itself, below, except: true } => {
                        names.except(domain, place, itself, below);
                    }
                    Said::Glob(glob) => globs.push((place, glob)),
                    // They stand in the rule already: `PolicySet::with_listed_networks`.
                    Said::Network(_) => {}
                }));
            }
        }
        Self { names, globs, lists: tallies }
    }

    /// As the rules and their lists write them.
    pub fn count(&self) -> usize {
        self.names.len() + self.globs.len()
    }
}

impl Tables {
    /// `said`: by each rule of the set about what it names; `excepted`: about what its lists except.
    pub fn new(said: &[Match], excepted: &[Match], patterns: Patterns, budget: Budget) -> Self {
        let Patterns { names, globs, .. } = patterns;
        let said = |place: u32| said[place as usize];
        let key = names.key();
        let mut sayings = Sayings::default();
        let named = names.build(&mut sayings, |place, except| match except {
            true => excepted[place as usize],
            false => said(place),
        });
        let globs: Vec<Glob<'_>> = globs
            .iter()
            .map(|(place, glob)| Glob { place: *place, text: glob.glob(), said: said(*place) })
            .collect();
        let made = automata::build(&globs, budget, &mut |said| {
            sayings.index(Domain { itself: said, ..Domain::NONE })
        });
        let mut tables = Self::with_names(key, named, sayings.all);
        let Header { automata, accept, starts, classes, .. } = made.header;
        tables.header = Header { automata, accept, starts, classes, ..tables.header };
        tables.automata = made.words;
        tables.states = made.states;
        tables.globs = globs.len() - made.late.len();
        tables.late = made.late.iter().map(|glob| (glob.place, glob.text.to_owned())).collect();
        tables
    }

    fn with_names(key: [u64; 2], named: names::Made, domains: Vec<Domain>) -> Self {
        let count = |len| u32::try_from(len).unwrap_or(u32::MAX);
        let (buckets, filter) = (count(named.buckets.len()), count(named.filter.len()));
        Self {
            header: Header { key, buckets, filter, lengths: named.lengths, ..Header::NONE },
            buckets: named.buckets,
            filter: named.filter,
            names: named.count,
            domains,
            automata: Vec::new(),
            states: 0,
            globs: 0,
            late: Vec::new(),
        }
    }

    /// What the tables say about a name: what the kernel would say. None: the kernel leaves it to the daemon.
    pub fn matches(&self, name: &Name) -> Option<Match> {
        let odd = name.as_str().contains('\\');
        if odd { None } else { Some(self.ask(name, false)) }
    }

    /// What exact and suffix patterns say about a name.
    pub fn matches_suffixes(&self, name: &Name) -> Match {
        self.ask(name, true)
    }

    /// The longest domain of the table that the name is or is below, as the packet path knows it; 0: none.
    pub fn domain(&self, name: &Name) -> u64 {
        self.text(name, name.as_str().contains('\\')).domain
    }

    fn ask(&self, name: &Name, odd: bool) -> Match {
        self.text(name, odd).matched
    }

    fn text(&self, name: &Name, odd: bool) -> Text {
        let mut text = Text::EMPTY;
        for label in name.as_str().split('.') {
            // As the kernel does: no pattern has the byte, so what stands there does not matter.
            let label = if label.contains('\\') { "\\" } else { label };
            text.begin_label();
            let at = text.len as usize;
            // A name without escapes is shorter than the room for it.
            text.text[at..at + label.len()].copy_from_slice(label.as_bytes());
            text.len += label.len() as u32;
        }
        let mut asked = Asked { text, tables: self };
        match_name(&mut asked, odd);
        asked.text
    }
}

const _: () = assert!(enforcer_common::limits::NAME_BYTES < TEXT);

/// What a rule at this place says about a name that it names. `seat`: of a conditional rule.
pub fn said(place: u32, rule: &Rule, seat: Option<u32>) -> Match {
    if let Some(seat) = seat {
        return Match { conditional: Seats::one(seat), ..Match::NONE };
    }
    let by = placed(place, rule.id);
    match rule.action {
        Action::Allow => Match { allow: by, ..Match::NONE },
        Action::Deny => Match { deny: by, ..Match::NONE },
        Action::Audit => Match { audit: by, ..Match::NONE },
    }
}

/// What a rule at this place says about a name that its lists except: whatever else names it, it may be reached. A
/// conditional rule must not open anything to those whom it does not concern: its lists except nothing.
pub fn excepted(place: u32, rule: &Rule) -> Match {
    if rule.conditions.is_empty() {
        Match { allow: placed(place, rule.id), ..Match::NONE }
    } else {
        Match::NONE
    }
}

/// Numbers for what is said about domains.
#[derive(Debug, Default)]
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

impl Matchable for Tables {
    fn header(&self) -> &Header {
        &self.header
    }

    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.buckets.get(index as usize)
    }

    fn filter(&self, index: u32) -> u64 {
        self.filter.get(index as usize).copied().unwrap_or(0)
    }

    fn domain(&self, index: u32) -> Option<&Domain> {
        self.domains.get(index as usize)
    }

    fn word(&self, index: u32) -> u32 {
        let block = self.automata.get(index as usize / BLOCK);
        block.map_or(0, |block| block[index as usize % BLOCK])
    }
}

impl Repeat for Tables {
    fn repeat<S: Step<C>, C>(times: u32, context: &mut C) {
        plainly::<S, C>(times, context);
    }
}

struct Asked<'a> {
    text: Text,
    tables: &'a Tables,
}

impl Matching for Asked<'_> {
    type Tables = Tables;

    fn name(&mut self) -> &mut Text {
        &mut self.text
    }

    fn tables(&self) -> &Tables {
        self.tables
    }

    fn both(&mut self) -> (&mut Text, &Tables) {
        (&mut self.text, self.tables)
    }
}

#[cfg(test)]
mod tests {
    use enforcer_common::name::rule;
    use enforcer_common::verdict::NO_RULE;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::compile::{Beside, Claims, Compiled};
    use crate::engine::policy::{Conditions, Origin, Rule, rule_id};

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
                lists: Vec::new(),
                networks: Vec::new(),
                spares: Vec::new(),
                conditions: Conditions::default(),
                origin: Origin { file: "test".into(), line: 1, column: 1 },
            }
        });
        PolicySet { rules: rules.collect() }
    }

    fn tables(set: &PolicySet, budget: Budget) -> Tables {
        let said: Vec<Match> = (0..).zip(&set.rules).map(|(place, rule)| said(place, rule, None)).collect();
        Tables::new(&said, &said, Patterns::collect(set, &Lists::default(), KEY), budget)
    }

    /// What the tables say and what the daemon's matcher, which is made of globset, says.
    fn both(set: &PolicySet, tables: &Tables, name: &str) -> (Option<Claims>, Claims) {
        let name = Name::from_text(name).unwrap();
        let said = tables.matches(&name);
        let said = said.map(|said| Claims {
            allow: rule(said.allow),
            deny: rule(said.deny),
            audit: rule(said.audit),
            conditional: said.conditional,
        });
        (
            said,
            Compiled::with_budget(set, &Lists::default(), KEY, &Beside::default(), Budget::NOTHING)
                .unwrap()
                .claims(&name),
        )
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
            let tables = tables(&set, Budget::default());
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
        let tables = tables(&set, Budget { words: 1 << 16, ..Budget::default() });
        assert!(tables.header.automata > 1 && !tables.late.is_empty(), "{:?}", tables.header.automata);
        assert!(tables.automata.len() * BLOCK <= (1 << 16) + BLOCK);
        let late: Vec<&str> = tables.late.iter().map(|(_, text)| text.as_str()).collect();
        for (n, host) in hosts.iter().enumerate() {
            let (said, _) = both(&set, &tables, &format!("a{n:03}b{:03}cx", n * 7 % 1000));
            assert_eq!(said.unwrap().deny == NO_RULE, late.contains(host), "{host}");
        }
    }

    /// What matched is no matter once a rule has its word: `*a.*` and `*b.*` need no state for "both".
    #[test]
    fn a_thousand_globs_of_one_shape_are_one_automaton() {
        let word = |n: u32| format!("{:x}", n.wrapping_mul(0x9e37_79b9) >> 8);
        let text: Vec<String> = (1..=1000).map(|n| format!("*-{}.*", word(n))).collect();
        let hosts: Vec<&str> = text.iter().map(String::as_str).collect();
        let set = set(&[(Action::Deny, &hosts)]);
        let tables = tables(&set, Budget::default());
        assert_eq!((tables.header.automata, tables.late.len(), tables.globs), (1, 0, 1000));
        assert!(tables.states < 10_000, "{}", tables.states);
        for n in 1..=1000 {
            let name = Name::from_text(&format!("x-{}.y{}.example", word(n), word(n / 2))).unwrap();
            assert_eq!(rule(tables.matches(&name).unwrap().deny), set.rules[0].id, "{name}");
        }
        let innocent = Name::from_text("x-zzz.example").unwrap();
        assert_eq!(tables.matches(&innocent), Some(Match::NONE));
    }

    #[test]
    fn escaped_names_are_left_to_the_daemon_and_nothing_matches_nothing() {
        let set = set(&[(Action::Deny, &["*"])]);
        let tables = tables(&set, Budget::default());
        let odd = Name::from_labels([b"a b".as_slice(), b"example"]).unwrap();
        assert_eq!(tables.matches(&odd), None);
        let nothing = self::tables(&PolicySet::default(), Budget::default());
        let name = Name::from_text("a.example").unwrap();
        assert_eq!(nothing.matches(&name), Some(Match::NONE));
    }

    fn pattern() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "a",
            "b",
            "ab",
            "-",
            ".",
            ".a",
            "*",
            "?",
            "[ab]",
            "[!a]",
            "{a,b.b}",
            "1",
            "[a-c1]",
            "{,a}",
            "{*a,{b,1}?}",
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
            let tables = tables(&set, Budget::default());
            // One case in thousands has globs that are too heavy; others test what becomes of those.
            prop_assume!(tables.late.is_empty());
            for name in &names {
                let (said, by_globset) = both(&set, &tables, name);
                prop_assert_eq!(said, Some(by_globset), "{} {:?}", name, patterns);
            }
        }
    }
}
