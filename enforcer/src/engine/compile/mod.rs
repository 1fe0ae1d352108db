//! Rules compiled for asking: which rules name this host, which networks stand in the trie.

mod networks;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::OnceLock;

use enforcer_common::limits::NAMES;
use enforcer_common::name::{self, Match};
use enforcer_common::quota;
use enforcer_common::verdict::{BootNanos, Conditional as Sitting, NO_RULE};
use enforcer_common::{Addr, Claim, Entry, RuleId, Seats};
use globset::{Glob, GlobSet};
use ipnetwork::IpNetwork;

use super::conditions::{self, Accounts, CONDITIONAL, Resolved, Seated, Table, TooMany, fingerprint};
use super::name::Name;
use super::plan::Matcher;
use super::policy::{
    Account, Action, Diagnostic, Lists, Origin, Pattern, PolicySet, Rule, Scope, Severity, Tally,
};
use super::tables::{Budget, Patterns, Tables, excepted, said};

pub use networks::{Change, Network, changes, joined};

/// Which rule speaks for each action about one name; `NO_RULE` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Claims {
    pub allow: RuleId,
    pub deny: RuleId,
    pub audit: RuleId,
    /// The seats of conditional rules.
    pub conditional: Seats,
}

impl Claims {
    pub const NONE: Self = Self { allow: NO_RULE, deny: NO_RULE, audit: NO_RULE, conditional: Seats::NONE };

    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// As a map entry whose claims all hold until the same moment.
    pub fn entry(self, until: BootNanos) -> Entry {
        let claim = |rule| if rule == NO_RULE { Claim::NONE } else { Claim::new(rule, until) };
        Entry {
            allow: claim(self.allow),
            deny: claim(self.deny),
            audit: claim(self.audit),
            conditional: Sitting::new(self.conditional, until),
        }
    }
}

impl From<Match> for Claims {
    fn from(by: Match) -> Self {
        Self {
            allow: name::rule(by.allow),
            deny: name::rule(by.deny),
            audit: name::rule(by.audit),
            conditional: by.conditional,
        }
    }
}

impl Matcher for Compiled {
    fn entry(&self, chain: &[Name], until: BootNanos) -> Entry {
        let by = chain.iter().fold(Match::NONE, |by, name| by.merge(self.named_by(name)));
        Claims::from(by).entry(until)
    }

    fn by_rule(&self, rule: RuleId, until: BootNanos) -> Entry {
        self.rules.get(&rule).map_or(Entry::NONE, |known| Claims::from(known.said).entry(until))
    }

    fn on_seat(&self, seat: u32) -> RuleId {
        self.conditions.transition.rule(seat)
    }
}

/// What the kernel must know about conditional rules.
#[derive(Clone, Debug)]
pub struct Conditional {
    /// In force from now on.
    pub table: Table,
    /// With the rules before: in force while some addresses carry the old seats and some the new ones.
    pub transition: Table,
}

/// What a policy set is compiled beside.
#[derive(Clone, Debug)]
pub struct Beside {
    /// The conditional rules in force.
    pub conditions: Table,
    pub accounts: Accounts,
    /// With `doh = "deny"`: of what the rules against encrypted DNS say nothing.
    pub spared: Option<Vec<IpNetwork>>,
}

impl Default for Beside {
    /// Nothing.
    fn default() -> Self {
        Self { conditions: Table::empty(), accounts: Accounts::default(), spared: None }
    }
}

#[derive(Clone, Debug)]
struct Known {
    name: Box<str>,
    said: Match,
}

/// How much a policy set holds, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub rules: usize,
    /// Of these: with ports, protocols or a scope.
    pub conditional: usize,
    /// As the rules and their lists write them.
    pub patterns: usize,
    /// Different domains in the kernel's table.
    pub names: usize,
    /// Globs that are matched in the kernel, and the states of their automata.
    pub globs: usize,
    pub states: usize,
    /// Globs that are matched after the answer was delivered.
    pub late_globs: usize,
    /// Lines of lists that say nothing.
    pub skipped: u64,
    /// As the rules write them: the trie has fewer (duplicates) or one more (see `shield_v4`).
    pub networks: usize,
}

/// What a rule does, and where it stands.
#[derive(Clone, Debug)]
pub struct About {
    pub action: Action,
    pub origin: Origin,
    /// What must hold beside the destination, in words, if anything must.
    pub conditions: Option<Box<str>>,
}

/// A policy set, ready for questions.
#[derive(Clone, Debug)]
pub struct Compiled {
    rules: HashMap<RuleId, Known>,
    conditions: Conditional,
    tables: Tables,
    /// Globs for which the kernel has no room.
    late: Globs,
    /// Every glob once more, for names that are odd: the kernel leaves them to the daemon. As text, which is a tenth.
    globs: Vec<(Match, Box<str>)>,
    /// Made when the first odd name comes: it takes much memory, and few hosts ever see one.
    odd: OnceLock<Globs>,
    networks: BTreeMap<Network, Entry>,
    lists: Vec<Tally>,
    /// What is told of each rule.
    about: HashMap<RuleId, About>,
    counts: Counts,
    warnings: Vec<Diagnostic>,
    any_named: bool,
}

impl Compiled {
    /// `lists` has every list of the set; `key` is random. Fails when the names, the globs or the networks are more
    /// than fit.
    pub fn new(set: &PolicySet, lists: &Lists, key: [u64; 2]) -> Result<Self, Vec<Diagnostic>> {
        Self::with_budget(set, lists, key, &Beside::default(), Budget::default())
    }

    pub fn with_budget(
        set: &PolicySet,
        lists: &Lists,
        key: [u64; 2],
        beside: &Beside,
        budget: Budget,
    ) -> Result<Self, Vec<Diagnostic>> {
        let set = &*set.with_listed_networks(lists);
        let (conditions, seats) =
            seated(&set.rules, lists, key, beside).map_err(|why| conditions::too_many(&set.rules, why))?;
        let by = |((place, rule), seat): ((u32, &Rule), &Option<u32>)| said(place, rule, *seat);
        let said: Vec<Match> = (0..).zip(&set.rules).zip(&seats).map(by).collect();
        let networks = networks::merged(&set.rules, &said)?;
        let mut patterns = Patterns::collect(set, lists, key);
        let by = |(place, glob): &(u32, Glob)| (said[*place as usize], glob.clone());
        let globs: Vec<(Match, Glob)> = patterns.globs.iter().map(by).collect();
        Globs::new(&globs).map_err(|error| too_many_globs(&set.rules, &error))?;
        let count = patterns.count();
        let tallies = std::mem::take(&mut patterns.lists);
        let excepts: Vec<Match> = (0..).zip(&set.rules).map(|(place, rule)| excepted(place, rule)).collect();
        let mut tables = Tables::new(&said, &excepts, patterns, budget);
        // What only the daemon can match, the kernel would take for a name that no rule refuses.
        let knows_innocents = tables.late.is_empty() && set.rules.iter().any(|rule| rule.conditions.unshared);
        tables.header.shared = knows_innocents.into();
        if tables.names > NAMES {
            return Err(too_many_names(&set.rules));
        }
        let counts = Counts {
            rules: set.rules.len(),
            conditional: seats.iter().flatten().count(),
            patterns: count,
            names: tables.names,
            globs: tables.globs,
            states: tables.states,
            late_globs: tables.late.len(),
            skipped: tallies.iter().map(Tally::all_skipped).sum(),
            networks: set.rules.iter().map(|rule| rule.networks.len()).sum(),
        };
        let late: HashSet<&str> = tables.late.iter().map(|(_, glob)| glob.as_str()).collect();
        let late: Vec<(Match, Glob)> =
            globs.iter().filter(|(_, glob)| late.contains(glob.glob())).cloned().collect();
        let late = Globs::new(&late).map_err(|error| too_many_globs(&set.rules, &error))?;
        let mut warnings = warnings(&tallies, &tables, &set.rules);
        warnings.extend(set.rules.iter().flat_map(|rule| unknown_accounts(rule, &beside.accounts)));
        let any_named = set.rules.iter().any(|rule| rule.conditions.scope.names_accounts());
        let known =
            |(rule, said): (&Rule, &Match)| (rule.id, Known { name: rule.name.as_str().into(), said: *said });
        let rules = set.rules.iter().zip(&said).map(known).collect();
        let globs = globs.into_iter().map(|(said, glob)| (said, glob.glob().into())).collect();
        let about = |rule: &Rule| {
            let conditions = &rule.conditions;
            let conditions = (!conditions.is_empty()).then(|| conditions.to_string().into());
            (rule.id, About { action: rule.action, origin: rule.origin.clone(), conditions })
        };
        let about = set.rules.iter().map(about).collect();
        Ok(Self {
            rules,
            conditions,
            tables,
            late,
            globs,
            odd: OnceLock::new(),
            networks,
            lists: tallies,
            about,
            counts,
            warnings,
            any_named,
        })
    }

    /// The rules that name this host. Within one action the first rule of the set.
    pub fn claims(&self, name: &Name) -> Claims {
        self.named_by(name).into()
    }

    fn named_by(&self, name: &Name) -> Match {
        match self.tables.matches(name) {
            Some(by) => by.merge(self.late.matches(name)),
            None => self.tables.matches_suffixes(name).merge(self.odd().matches(name)),
        }
    }

    fn odd(&self) -> &Globs {
        self.odd.get_or_init(|| {
            let parsed = |(said, text): &(Match, Box<str>)| match Pattern::new(text) {
                Ok(Pattern::Glob(glob)) => Some((*said, glob)),
                _ => None,
            };
            // Each was one when the policy was loaded, and the set of them could be made.
            let globs: Vec<(Match, Glob)> = self.globs.iter().filter_map(parsed).collect();
            debug_assert_eq!(globs.len(), self.globs.len());
            Globs::new(&globs).unwrap_or_default()
        })
    }

    /// Whether only a glob that the kernel has no room for names one of these.
    pub fn is_late(&self, chain: &[Name]) -> bool {
        let by_kernel = |name: &Name| self.tables.matches(name).unwrap_or(Match::NONE);
        !self.tables.late.is_empty() && chain.iter().any(|name| by_kernel(name) != self.named_by(name))
    }

    /// What new addresses of an answer are charged to.
    pub fn account(&self, chain: &[Name]) -> quota::Account {
        let claimed = chain.iter().fold(Match::NONE, |by, name| by.merge(self.named_by(name)));
        let domain = chain.iter().map(|name| self.tables.domain(name)).rfind(|domain| *domain != 0);
        let exceptions = self.conditions.transition.by_action(Action::Allow);
        quota::Account::of(&claimed, domain.unwrap_or(0), Some(&exceptions))
    }

    /// Whether no rule refuses or audits what these names lead to.
    pub fn is_innocent(&self, chain: &[Name]) -> bool {
        let claimed = chain.iter().fold(Match::NONE, |by, name| by.merge(self.named_by(name)));
        claimed.is_innocent(Some(&self.conditions.transition.by_action(Action::Allow)))
    }

    /// What the kernel matches with.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// What the trie holds: each network with its own claims and those of every network around it, because
    /// a lookup in the kernel sees the longest match only.
    pub fn networks(&self) -> &BTreeMap<Network, Entry> {
        &self.networks
    }

    /// What a lookup in the trie gives for this address.
    pub fn network_claim(&self, addr: Addr) -> Option<Entry> {
        let around = self.networks.iter().filter(|(network, _)| network.contains(addr));
        around.max_by_key(|(network, _)| network.prefix).map(|(_, entry)| *entry)
    }

    pub fn rule_name(&self, id: RuleId) -> Option<&str> {
        self.rules.get(&id).map(|rule| rule.name.as_ref())
    }

    /// Whether some rule allows, or has conditions: it cannot be put in force address by address.
    pub fn is_staged(&self) -> bool {
        self.rules.values().any(|rule| rule.said.allow != name::NOBODY || !rule.said.conditional.is_none())
    }

    /// Whether a rule speaks of users or groups by name, whose numbers can change.
    pub fn names_accounts(&self) -> bool {
        self.any_named
    }

    pub fn conditions(&self) -> &Conditional {
        &self.conditions
    }

    pub fn rule(&self, id: RuleId) -> Option<&About> {
        self.about.get(&id)
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What each list held, in the order of the rules.
    pub fn lists(&self) -> &[Tally] {
        &self.lists
    }

    /// What is allowed, but hardly meant, or weaker than it looks.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }
}

/// Names in a scope that nobody has.
fn unknown_accounts(rule: &Rule, known: &Accounts) -> Vec<Diagnostic> {
    let Scope { users, groups, .. } = &rule.conditions.scope;
    let kinds = [("user", users, &known.users), ("group", groups, &known.groups)];
    let unknown = kinds.into_iter().flat_map(|(kind, written, known)| {
        let name = |account: &Account| match account {
            Account::Name(name) if !known.contains_key(name) => Some(name.clone()),
            _ => None,
        };
        written.iter().filter_map(name).map(move |name| (kind, name)).collect::<Vec<_>>()
    });
    unknown
        .map(|(kind, name)| {
            let message =
                format!("the {kind} {name:?} in the scope of the rule `{}` does not exist", rule.name);
            let hint = "it is in scope as soon as there is one; a directory service is not asked: write its number there"
                .to_owned();
            Diagnostic { severity: Severity::Warning, ..Diagnostic::about_rule(&rule.origin, message, hint) }
        })
        .collect()
}

/// A seat for each conditional rule, and the table of them.
fn seated(
    rules: &[Rule],
    lists: &Lists,
    key: [u64; 2],
    beside: &Beside,
) -> Result<(Conditional, Vec<Option<u32>>), TooMany> {
    let conditional = |rule: &&Rule| !rule.conditions.is_empty();
    let scopes: Vec<Resolved> =
        rules.iter().map(|rule| Resolved::new(&rule.conditions.scope, &beside.accounts)).collect();
    let of = |(rule, scope): (&Rule, &Resolved)| conditional(&rule).then(|| fingerprint(rule, scope, lists));
    let prints: Vec<Option<u64>> = rules.iter().zip(&scopes).map(of).collect();
    let old = &beside.conditions;
    let some: Vec<u64> = prints.iter().flatten().copied().collect();
    if some.len() > CONDITIONAL {
        return Err(TooMany::Seats);
    }
    let mut assigned = old.assign(&some)?.into_iter();
    let seats: Vec<Option<u32>> = prints.iter().map(|print| print.and_then(|_| assigned.next())).collect();
    let all = rules.iter().zip(&scopes).zip(prints.iter().zip(&seats));
    let seated: Vec<Seated<'_>> = all
        .filter_map(|((rule, scope), (print, seat))| {
            Some(Seated { seat: (*seat)?, rule, scope, fingerprint: (*print)? })
        })
        .collect();
    let table = Table::new(&seated, old.key().unwrap_or(key))?;
    let transition = old.with(&table)?;
    Ok((Conditional { table, transition }, seats))
}

/// Globs as globset matches them.
#[derive(Clone, Debug, Default)]
struct Globs {
    set: GlobSet,
    /// What each of them says.
    said: Vec<Match>,
}

impl Globs {
    fn new(globs: &[(Match, Glob)]) -> Result<Self, globset::Error> {
        let set = GlobSet::new(globs.iter().map(|(_, glob)| glob))?;
        Ok(Self { set, said: globs.iter().map(|(said, _)| *said).collect() })
    }

    fn matches(&self, name: &Name) -> Match {
        let globs = self.set.matches(name.as_str()).into_iter().map(|glob| self.said[glob]);
        globs.fold(Match::NONE, Match::merge)
    }
}

fn warnings(lists: &[Tally], tables: &Tables, rules: &[Rule]) -> Vec<Diagnostic> {
    let late = tables.late.iter().filter_map(|(place, glob)| {
        let rule = rules.get(*place as usize)?;
        let message = format!(
            "the kernel has no room for the glob `{glob}` of the rule `{}`: it is matched after the answer was \
             delivered, and the first connect can get through",
            rule.name
        );
        let hint = "write it with fewer `*`, or as `.example.com`".to_owned();
        Some(Diagnostic { severity: Severity::Warning, ..Diagnostic::about_rule(&rule.origin, message, hint) })
    });
    let unshared = rules.iter().find(|rule| rule.conditions.unshared && !tables.late.is_empty());
    let useless = unshared.map(|rule| {
        let message = format!(
            "`shared = \"allow\"` of the rule `{}` lets nothing pass: with globs that the kernel has no room for, it does not \
             know which names no rule refuses",
            rule.name
        );
        let hint = "write these globs with fewer `*`, or as `.example.com`".to_owned();
        Diagnostic { severity: Severity::Warning, ..Diagnostic::about_rule(&rule.origin, message, hint) }
    });
    lists.iter().filter_map(Tally::warning).chain(late).chain(useless).collect()
}

fn too_many_names(rules: &[Rule]) -> Vec<Diagnostic> {
    let most = rules.iter().max_by_key(|rule| (!rule.lists.is_empty(), rule.hosts.len()));
    let about = |rule: &Rule| {
        let message = format!("all rules and lists together name more than {NAMES} domains");
        Diagnostic::about_rule(&rule.origin, message, "leave a list out".to_owned())
    };
    most.map(about).into_iter().collect()
}

fn too_many_globs(rules: &[Rule], error: &globset::Error) -> Vec<Diagnostic> {
    let globs = |rule: &Rule| rule.hosts.iter().filter(|host| matches!(host, Pattern::Glob(_))).count();
    let most = rules.iter().max_by_key(|rule| globs(rule));
    let most = most.map(|rule| {
        let message = format!("the globs of all rules together are too large, most of them here: {error}");
        let hint = "write `.example.com` instead of globs where that says the same".to_owned();
        Diagnostic::about_rule(&rule.origin, message, hint)
    });
    most.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use enforcer_common::{Decision, Said, Verdict};
    use globset::{GlobBuilder, GlobSetBuilder};
    use proptest::prelude::*;

    use enforcer_common::limits::NETWORKS;
    use enforcer_common::verdict::FOREVER;
    use ipnetwork::IpNetwork;

    use super::super::policy::{Conditions, rule_id};
    use super::*;

    const KEY: [u64; 2] = [7, 8];
    /// They take long to make, and are not asked here.
    const NO_AUTOMATA: Budget = Budget::NOTHING;

    /// What the oracles join claims with.
    impl Claims {
        /// Both claims together; where both have a rule, that of `self` stands.
        fn or(self, other: Self) -> Self {
            let first = |a, b| if a == NO_RULE { b } else { a };
            Self {
                allow: first(self.allow, other.allow),
                deny: first(self.deny, other.deny),
                audit: first(self.audit, other.audit),
                conditional: Seats::NONE,
            }
        }
    }

    fn rule(name: &str, action: Action, hosts: &[&str], networks: &[&str]) -> Rule {
        Rule {
            id: rule_id(name),
            name: name.into(),
            description: None,
            action,
            hosts: hosts.iter().map(|text| Pattern::new(text).unwrap()).collect(),
            lists: Vec::new(),
            networks: networks.iter().map(|text| text.parse().unwrap()).collect(),
            spares: Vec::new(),
            conditions: Conditions::default(),
            origin: Origin { file: "a.toml".into(), line: 1, column: 1 },
        }
    }

    fn compiled(rules: Vec<Rule>) -> Compiled {
        Compiled::with_budget(&PolicySet { rules }, &Lists::default(), KEY, &Beside::default(), NO_AUTOMATA)
            .unwrap()
    }

    fn name(text: &str) -> Name {
        Name::from_text(text).unwrap()
    }

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    /// What DESIGN's table of patterns says, in the shortest code that says it.
    mod oracle {
        pub(super) fn matches(pattern: &str, name: &str) -> bool {
            match pattern.strip_prefix('.') {
                Some(domain) => name == domain || name.ends_with(pattern),
                None => {
                    alternatives(pattern).iter().any(|glob| glob_matches(glob.as_bytes(), name.as_bytes()))
                }
            }
        }

        /// The pattern without braces, once for each choice.
        fn alternatives(pattern: &str) -> Vec<String> {
            let Some(open) = pattern.find('{') else { return vec![pattern.to_owned()] };
            let (mut depth, mut begin, mut choices) = (0, open + 1, Vec::new());
            for (at, c) in pattern.char_indices().skip(open) {
                match c {
                    '{' => depth += 1,
                    ',' | '}' if depth == 1 => {
                        choices.push(&pattern[begin..at]);
                        begin = at + 1;
                        depth -= usize::from(c == '}');
                    }
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            let all =
                choices.iter().map(|choice| format!("{}{choice}{}", &pattern[..open], &pattern[begin..]));
            all.flat_map(|one| alternatives(&one)).collect()
        }

        fn glob_matches(glob: &[u8], name: &[u8]) -> bool {
            match (glob.first(), name.first()) {
                (None, first) => first.is_none(),
                (Some(b'*'), first) => {
                    glob_matches(&glob[1..], name) || (first.is_some() && glob_matches(glob, &name[1..]))
                }
                (Some(_), None) => false,
                (Some(b'?'), Some(_)) => glob_matches(&glob[1..], &name[1..]),
                (Some(b'['), Some(&c)) => {
                    let end = glob.iter().position(|&b| b == b']').unwrap();
                    let negated = glob[1] == b'!';
                    let class = &glob[1 + usize::from(negated)..end];
                    class_has(class, c) != negated && glob_matches(&glob[end + 1..], &name[1..])
                }
                (Some(a), Some(b)) => a == b && glob_matches(&glob[1..], &name[1..]),
            }
        }

        fn class_has(class: &[u8], c: u8) -> bool {
            match class {
                [from, b'-', to, rest @ ..] => (*from..=*to).contains(&c) || class_has(rest, c),
                [one, rest @ ..] => *one == c || class_has(rest, c),
                [] => false,
            }
        }
    }

    /// The pattern as globset alone understands it.
    fn globset_matches(pattern: &str, name: &str) -> bool {
        let glob =
            pattern.strip_prefix('.').map_or_else(|| pattern.to_owned(), |domain| format!("{{,*.}}{domain}"));
        let glob = GlobBuilder::new(&glob).literal_separator(false).empty_alternates(true).build().unwrap();
        GlobSetBuilder::new().add(glob).build().unwrap().is_match(name)
    }

    fn agree(pattern: &str, text: &str) -> bool {
        let compiled = compiled(vec![rule("r", Action::Deny, &[pattern], &[])]);
        let (host, pattern) = (name(text), pattern.to_ascii_lowercase());
        let got = compiled.claims(&host).deny != NO_RULE;
        assert_eq!(got, globset_matches(&pattern, host.as_str()), "globset: {pattern} {host}");
        assert_eq!(got, oracle::matches(&pattern, host.as_str()), "oracle: {pattern} {host}");
        got
    }

    #[test]
    fn pattern_rows() {
        // Does the pattern match example.com, a.example.com, a.b.example.com, notexample.com?
        let rows = [
            ("example.com", [true, false, false, false]),
            ("*.example.com", [false, true, true, false]),
            (".example.com", [true, true, true, false]),
            ("*example.com", [true, true, true, true]),
            ("EXAMPLE.com", [true, false, false, false]),
            ("*", [true; 4]),
            ("*.com", [true; 4]),
            ("com", [false; 4]),
            ("*.*.com", [false, true, true, false]),
            ("?.example.com", [false, true, false, false]),
            ("???example.com", [false, false, false, true]),
            ("a.*", [false, true, true, false]),
            ("a.*.com", [false, true, true, false]),
            ("{a,b}.example.com", [false, true, false, false]),
            ("{,not}example.com", [true, false, false, true]),
            ("{,{a,x}.{b.,}}example.{com,net}", [true, true, true, false]),
            ("[a-c].*", [false, true, true, false]),
            ("[!a-c]*", [true, false, false, true]),
            ("*xampl*", [true; 4]),
            ("*.example.co", [false; 4]),
            ("xample.com", [false; 4]),
        ];
        let names = ["example.com", "a.example.com", "a.b.example.com", "notexample.com"];
        for (pattern, want) in rows {
            assert_eq!(names.map(|text| agree(pattern, text)), want, "{pattern}");
            // Case never matters.
            assert_eq!(names.map(|text| agree(pattern, &text.to_uppercase())), want, "{pattern}");
        }
    }

    #[test]
    fn the_first_rule_of_each_action_claims() {
        let compiled = compiled(vec![
            rule("glob", Action::Deny, &["a*.example"], &[]),
            rule("suffix", Action::Deny, &[".example"], &[]),
            rule("exact", Action::Deny, &["a.example", "b.example"], &[]),
            rule("except", Action::Allow, &["ab.example"], &[]),
            rule("audit", Action::Audit, &["*.c.example", "c.example"], &[]),
        ]);
        let names = |host| {
            let Claims { allow, deny, audit, .. } = compiled.claims(&name(host));
            [allow, deny, audit].map(|id| compiled.rule_name(id))
        };
        assert_eq!(names("a.example"), [None, Some("glob"), None]);
        assert_eq!(names("b.example"), [None, Some("suffix"), None]);
        assert_eq!(names("ab.example"), [Some("except"), Some("glob"), None]);
        assert_eq!(names("c.example"), [None, Some("suffix"), Some("audit")]);
        assert_eq!(names("x.c.example"), [None, Some("suffix"), Some("audit")]);
        assert_eq!(names("example.net"), [None; 3]);
        assert_eq!(
            compiled.counts(),
            Counts { rules: 5, patterns: 7, names: 5, late_globs: 1, ..Counts::default() }
        );
    }

    #[test]
    fn claims_join_and_become_an_entry() {
        let (a, b) = (Claims { deny: 1, ..Claims::NONE }, Claims { deny: 2, audit: 3, ..Claims::NONE });
        let both = a.or(b);
        assert_eq!(both, Claims { deny: 1, audit: 3, ..Claims::NONE });
        let entry = both.entry(10);
        assert_eq!(entry, Entry { deny: Claim::new(1, 10), audit: Claim::new(3, 10), ..Entry::NONE });
        assert!(Claims::NONE.is_none() && !both.is_none());
        assert_eq!(Claims::NONE.entry(FOREVER), Entry::NONE);
    }

    #[test]
    fn networks_inherit_from_those_around_them() {
        let compiled = compiled(vec![
            rule("all", Action::Audit, &[], &["0.0.0.0/0"]),
            rule("wide", Action::Deny, &[], &["10.0.0.0/8"]),
            rule("hole", Action::Allow, &[], &["10.1.0.0/16", "10.1.0.0/16"]),
            rule("deep", Action::Deny, &[], &["10.1.2.0/24", "192.0.2.1/32"]),
        ]);
        let prefixes: Vec<_> = compiled.networks().keys().map(|network| network.prefix).collect();
        assert_eq!(prefixes, [96, 104, 112, 120, 128]);
        let names = |host| {
            let Entry { allow, deny, audit, .. } = compiled.network_claim(addr(host)).unwrap_or_default();
            [allow.rule, deny.rule, audit.rule].map(|id| compiled.rule_name(id))
        };
        assert_eq!(names("10.1.2.3"), [Some("hole"), Some("wide"), Some("all")]);
        assert_eq!(names("::ffff:10.2.0.1"), [None, Some("wide"), Some("all")]);
        assert_eq!(names("64:ff9b::192.0.2.1"), [None, Some("deep"), Some("all")]);
        assert_eq!(names("192.0.2.2"), [None, None, Some("all")]);
        assert_eq!(names("2001:db8::1"), [None; 3]);
    }

    #[test]
    fn all_of_ipv6_is_not_ipv4() {
        let compiled = compiled(vec![rule("v6", Action::Deny, &[], &["::/0"])]);
        assert_eq!(compiled.networks().len(), 2, "{:?}", compiled.networks());
        assert_eq!(compiled.network_claim(addr("192.0.2.1")), Some(Entry::NONE));
        assert_ne!(compiled.network_claim(addr("2001:db8::1")), Some(Entry::NONE));
        for text in ["64:ff9b::192.0.2.1", "2002:c000:201::1", "::192.0.2.1"] {
            assert_eq!(compiled.network_claim(addr(text)), Some(Entry::NONE), "{text} is IPv4");
        }
    }

    #[test]
    fn more_than_fits_is_an_error_with_a_place() {
        let network = |n: u32| IpNetwork::new(IpAddr::V4(n.into()), 32).unwrap();
        let mut many = rule("many", Action::Deny, &[], &[]);
        many.networks = (0..NETWORKS - 1).map(network).collect();
        assert!(
            Compiled::with_budget(
                &PolicySet { rules: vec![many.clone()] },
                &Lists::default(),
                KEY,
                &Beside::default(),
                NO_AUTOMATA
            )
            .is_ok()
        );
        many.networks.push(network(NETWORKS));
        let errors = Compiled::with_budget(
            &PolicySet { rules: vec![many] },
            &Lists::default(),
            KEY,
            &Beside::default(),
            NO_AUTOMATA,
        )
        .unwrap_err();
        let want = "error: a.toml:1:1: with the rule `many` there are more than 65535 networks";
        assert!(errors[0].to_string().starts_with(want), "{}", errors[0]);

        let globs: Vec<_> = (0..1500).map(|n| format!("{n}{}", "{[!a],b*,c?}".repeat(30))).collect();
        let large = rule("large", Action::Deny, &globs.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        let errors = Compiled::with_budget(
            &PolicySet { rules: vec![large] },
            &Lists::default(),
            KEY,
            &Beside::default(),
            NO_AUTOMATA,
        )
        .unwrap_err();
        assert!(
            errors[0].message.starts_with("the globs of all rules together are too large"),
            "{}",
            errors[0]
        );
    }

    fn host() -> impl Strategy<Value = String> {
        prop::collection::vec("[a-cA-C]{1,3}", 1..5).prop_map(|labels| labels.join("."))
    }

    fn pattern() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => "[a-cB]{1,2}",
            2 => Just("*".to_owned()),
            2 => Just(".".to_owned()),
            1 => Just("?".to_owned()),
            1 => Just("[ab]".to_owned()),
            1 => Just("[!b-c]".to_owned()),
        ];
        let piece = piece.prop_recursive(3, 16, 3, |inner| {
            let choice = prop::collection::vec(inner, 0..3).prop_map(|pieces| pieces.concat());
            prop::collection::vec(choice, 1..4).prop_map(|choices| format!("{{{}}}", choices.join(",")))
        });
        let glob = prop::collection::vec(piece, 1..6).prop_map(|pieces| pieces.concat());
        prop_oneof![3 => glob, 1 => host(), 1 => host().prop_map(|h| format!(".{h}")), 1 => host().prop_map(|h| format!("*.{h}"))]
    }

    fn network() -> impl Strategy<Value = IpNetwork> {
        let v4 = (0..4_u8, 0..4_u8, 0..=32_u8)
            .prop_map(|(a, d, prefix)| (IpAddr::from([a << 6, 0, 0, d]), prefix));
        let v6 = (0..4_u16, 0..4_u16, 0..=128_u8)
            .prop_map(|(a, h, prefix)| (IpAddr::from([a << 14, 0, 0, 0, 0, 1, 0, h]), prefix));
        prop_oneof![v4, v6].prop_map(|(address, prefix)| {
            let within = IpNetwork::new(address, prefix).unwrap();
            IpNetwork::new(within.network(), prefix).unwrap()
        })
    }

    fn destination() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..4_u8, 0..4_u8).prop_map(|(a, d)| IpAddr::from([a << 6, 0, 0, d])),
            // Below ::/96 there is IPv4.
            (0..4_u16, 0..4_u16).prop_map(|(a, h)| IpAddr::from([a << 14, 0, 0, 0, 0, 1, 0, h])),
        ]
    }

    /// The decision from the rules themselves: of all networks around the address, the strongest action, and
    /// of its rules the first.
    fn decide_naively(rules: &[Rule], destination: IpAddr) -> Decision {
        for (action, verdict) in
            [(Action::Allow, Verdict::Allow), (Action::Deny, Verdict::Deny), (Action::Audit, Verdict::Audit)]
        {
            let around = |rule: &&Rule| {
                rule.action == action && rule.networks.iter().any(|network| network.contains(destination))
            };
            if let Some(rule) = rules.iter().find(around) {
                return Decision { verdict, rule: rule.id };
            }
        }
        Decision { verdict: Verdict::Allow, rule: NO_RULE }
    }

    proptest! {
        #[test]
        fn random_patterns_agree(pattern in pattern(), hosts in prop::collection::vec(host(), 1..6)) {
            // What the parser refuses (two dots in a row, a leading dot with a wildcard) is not the matter here.
            if Pattern::new(&pattern).is_ok() && !pattern.ends_with('.') {
                for host in hosts {
                    agree(&pattern, &host);
                }
            }
        }

        #[test]
        fn many_rules_agree_with_one_at_a_time(
            patterns in prop::collection::vec((pattern(), 0..3_usize), 1..12),
            host in host(),
        ) {
            let patterns: Vec<_> = patterns.into_iter().filter(|(text, _)| Pattern::new(text).is_ok()).collect();
            let one = |(at, (text, action)): (usize, &(String, usize))| {
                rule(&format!("rule {at}"), Action::ALL[*action], &[text.as_str()], &[])
            };
            let rules: Vec<_> = patterns.iter().enumerate().map(one).collect();
            let single = |rule: &Rule| compiled(vec![rule.clone()]).claims(&name(&host));
            let want = rules.iter().map(single).fold(Claims::NONE, Claims::or);
            prop_assert_eq!(compiled(rules).claims(&name(&host)), want);
        }

        #[test]
        fn merged_networks_decide_as_all_networks_do(
            networks in prop::collection::vec((network(), 0..3_usize), 1..12),
            destinations in prop::collection::vec(destination(), 1..12),
        ) {
            let one = |(at, (network, action)): (usize, &(IpNetwork, usize))| {
                let mut rule = rule(&format!("rule {at}"), Action::ALL[*action], &[], &[]);
                rule.networks.push(*network);
                rule
            };
            let rules: Vec<_> = networks.iter().enumerate().map(one).collect();
            let compiled = compiled(rules.clone());
            for destination in destinations {
                let entry = compiled.network_claim(addr(&destination.to_string()));
                let mut said = Said::NOTHING;
                said.hear(&entry.unwrap_or_default(), u64::MAX - 1);
                let got = said.decide();
                prop_assert_eq!(got, decide_naively(&rules, destination), "{}", destination);
            }
        }
    }
}
