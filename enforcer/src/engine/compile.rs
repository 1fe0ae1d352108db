//! Rules compiled for asking: which rules name this host, which networks stand in the trie.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv6Addr;

use enforcer_common::limits::NETWORKS;
use enforcer_common::verdict::{BootNanos, FOREVER, NO_RULE};
use enforcer_common::{Addr, Claim, Entry, RuleId};
use globset::GlobSet;
use ipnetwork::IpNetwork;

use super::name::Name;
use super::plan::Matcher;
use super::policy::{Action, Diagnostic, Pattern, PolicySet, Rule};

/// Which rule speaks for each action about one name; `NO_RULE` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Claims {
    pub allow: RuleId,
    pub deny: RuleId,
    pub audit: RuleId,
}

impl Claims {
    pub const NONE: Self = Self { allow: NO_RULE, deny: NO_RULE, audit: NO_RULE };

    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// As a map entry whose claims all hold until the same moment.
    pub fn entry(self, until: BootNanos) -> Entry {
        let claim = |rule| if rule == NO_RULE { Claim::NONE } else { Claim::new(rule, until) };
        Entry { allow: claim(self.allow), deny: claim(self.deny), audit: claim(self.audit) }
    }
}

/// A key of the network trie: canonical address (IPv4 as IPv4-mapped) and leading bits, 0 to 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    pub addr: [u8; 16],
    pub prefix: u8,
}

impl Network {
    /// All of IPv4.
    const V4: Self = Self { addr: Addr::from_v4([0; 4]).octets(), prefix: 96 };

    pub fn contains(&self, addr: Addr) -> bool {
        self.covers(&Self { addr: addr.octets(), prefix: 128 })
    }

    /// Whether all of `inner` lies in this network.
    fn covers(&self, inner: &Self) -> bool {
        let differ = u128::from_be_bytes(self.addr) ^ u128::from_be_bytes(inner.addr);
        self.prefix <= inner.prefix && differ.leading_zeros() >= u32::from(self.prefix)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Ipv6Addr::from(self.addr).to_ipv4_mapped().zip(self.prefix.checked_sub(96)) {
            Some((v4, prefix)) => write!(f, "{v4}/{prefix}"),
            None => write!(f, "{}/{}", Ipv6Addr::from(self.addr), self.prefix),
        }
    }
}

impl From<IpNetwork> for Network {
    fn from(network: IpNetwork) -> Self {
        match network {
            IpNetwork::V4(v4) => {
                Self { addr: Addr::from_v4(v4.network().octets()).octets(), prefix: 96 + v4.prefix() }
            }
            IpNetwork::V6(v6) => Self { addr: v6.network().octets(), prefix: v6.prefix() },
        }
    }
}

impl Matcher for Compiled {
    fn entry(&self, chain: &[Name], until: BootNanos) -> Entry {
        let first = chain.iter().fold(First::NONE, |first, name| first.or(self.first(name)));
        self.by_name(first).entry(until)
    }

    fn knows(&self, rule: RuleId) -> bool {
        self.by_id.contains_key(&rule)
    }
}

/// How much a policy set holds, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub rules: usize,
    pub patterns: usize,
    /// As the rules write them: the trie has fewer (duplicates) or one more (see `shield_v4`).
    pub networks: usize,
}

/// A policy set, ready for questions.
#[derive(Clone, Debug)]
pub struct Compiled {
    rules: Vec<Rule>,
    by_id: HashMap<RuleId, usize>,
    domains: HashMap<Box<str>, Domain>,
    globs: GlobSet,
    /// The rule of each glob in `globs`.
    glob_rules: Vec<First>,
    networks: Vec<(Network, Entry)>,
}

/// What exact and suffix patterns say about one domain.
#[derive(Clone, Copy, Debug)]
struct Domain {
    itself: First,
    below: First,
}

impl Domain {
    const NONE: Self = Self { itself: First::NONE, below: First::NONE };
}

/// The first rule of each action, as its place in the policy set: the least place wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct First([u32; Action::ALL.len()]);

impl First {
    const NONE: Self = Self([u32::MAX; Action::ALL.len()]);

    fn new(action: Action, place: usize) -> Self {
        let mut first = Self::NONE;
        first.0[action as usize] = u32::try_from(place).unwrap_or(u32::MAX);
        first
    }

    fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|action| self.0[action].min(other.0[action])))
    }
}

impl Compiled {
    /// Fails when the globs or the networks are more than fit.
    pub fn new(set: &PolicySet) -> Result<Self, Vec<Diagnostic>> {
        let rules = set.rules.clone();
        let mut domains: HashMap<Box<str>, Domain> = HashMap::new();
        let (mut globs, mut glob_rules) = (Vec::new(), Vec::new());
        for (place, rule) in rules.iter().enumerate() {
            let first = First::new(rule.action, place);
            for pattern in &rule.hosts {
                let (name, itself, below) = match pattern {
                    Pattern::Exact(name) => (name, true, false),
                    Pattern::Suffix { domain, apex } => (domain, *apex, true),
                    Pattern::Glob(glob) => {
                        globs.push(glob);
                        glob_rules.push(first);
                        continue;
                    }
                };
                let domain = domains.entry(name.as_str().into()).or_insert(Domain::NONE);
                domain.itself = if itself { domain.itself.or(first) } else { domain.itself };
                domain.below = if below { domain.below.or(first) } else { domain.below };
            }
        }
        let globs = GlobSet::new(globs).map_err(|error| too_many_globs(&rules, &error))?;
        let by_id = rules.iter().enumerate().map(|(place, rule)| (rule.id, place)).collect();
        let mut compiled = Self { rules, by_id, domains, globs, glob_rules, networks: Vec::new() };
        compiled.networks = compiled.merged_networks()?;
        Ok(compiled)
    }

    /// The rules that name this host. Within one action the first rule of the set.
    pub fn claims(&self, name: &Name) -> Claims {
        self.by_name(self.first(name))
    }

    fn first(&self, name: &Name) -> First {
        let name = name.as_str();
        let mut first = self.domains.get(name).map_or(First::NONE, |domain| domain.itself);
        for (dot, _) in name.match_indices('.') {
            if let Some(domain) = self.domains.get(&name[dot + 1..]) {
                first = first.or(domain.below);
            }
        }
        for glob in self.globs.matches(name) {
            first = first.or(self.glob_rules[glob]);
        }
        first
    }

    /// What the trie holds: each network with its own claims and those of every network around it, because
    /// a lookup in the kernel sees the longest match only. Ordered by address, then prefix.
    pub fn networks(&self) -> &[(Network, Entry)] {
        &self.networks
    }

    /// What a lookup in the trie gives for this address.
    pub fn network_claim(&self, addr: Addr) -> Option<Entry> {
        let around = self.networks.iter().filter(|(network, _)| network.contains(addr));
        around.max_by_key(|(network, _)| network.prefix).map(|(_, entry)| *entry)
    }

    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.by_id.get(&id).map(|&place| &self.rules[place])
    }

    pub fn rule_name(&self, id: RuleId) -> Option<&str> {
        self.rule(id).map(|rule| rule.name.as_str())
    }

    pub fn counts(&self) -> Counts {
        Counts {
            rules: self.rules.len(),
            patterns: self.rules.iter().map(|rule| rule.hosts.len()).sum(),
            networks: self.rules.iter().map(|rule| rule.networks.len()).sum(),
        }
    }

    fn by_name(&self, First(places): First) -> Claims {
        let id = |action: Action| {
            let place = usize::try_from(places[action as usize]).unwrap_or(usize::MAX);
            self.rules.get(place).map_or(NO_RULE, |rule| rule.id)
        };
        Claims { allow: id(Action::Allow), deny: id(Action::Deny), audit: id(Action::Audit) }
    }

    fn merged_networks(&self) -> Result<Vec<(Network, Entry)>, Vec<Diagnostic>> {
        let (mut v4, mut v6) = (BTreeMap::new(), BTreeMap::new());
        for (place, rule) in self.rules.iter().enumerate() {
            for network in rule.networks.iter().map(|network| Network::from(*network)) {
                let family = if Network::V4.covers(&network) { &mut v4 } else { &mut v6 };
                let first = family.entry(network).or_insert(First::NONE);
                *first = first.or(First::new(rule.action, place));
            }
            if v4.len() + v6.len() >= NETWORKS as usize {
                return Err(too_many_networks(rule));
            }
        }
        shield_v4(&mut v4, &v6);
        let mut merged = inherited(v4);
        merged.extend(inherited(v6));
        merged.sort_unstable_by_key(|(network, _)| *network);
        Ok(merged.into_iter().map(|(network, first)| (network, self.by_name(first).entry(FOREVER))).collect())
    }
}

/// An IPv6 network so wide that it holds the IPv4-mapped range (`::/0`) speaks about IPv6 only. The trie has one
/// key space for both, so IPv4 gets a root of its own, where lookups for IPv4 end.
fn shield_v4(v4: &mut BTreeMap<Network, First>, v6: &BTreeMap<Network, First>) {
    if v6.keys().any(|network| network.covers(&Network::V4)) {
        v4.entry(Network::V4).or_insert(First::NONE);
    }
}

/// Adds to each network the claims of those around it. In the order of the map a network comes before what
/// it contains, and networks nest or are apart: a stack of the open ones is enough.
fn inherited(own: BTreeMap<Network, First>) -> Vec<(Network, First)> {
    let mut all: Vec<(Network, First)> = Vec::with_capacity(own.len());
    let mut open: Vec<usize> = Vec::new();
    for (network, first) in own {
        while open.pop_if(|&mut outer| !all[outer].0.covers(&network)).is_some() {}
        let around = open.last().map_or(First::NONE, |&outer| all[outer].1);
        open.push(all.len());
        all.push((network, first.or(around)));
    }
    all
}

fn too_many_networks(rule: &Rule) -> Vec<Diagnostic> {
    let message = format!("with the rule `{}` there are more than {} networks", rule.name, NETWORKS - 1);
    vec![Diagnostic::about_rule(&rule.origin, message, "join networks that lie side by side".to_owned())]
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

    use enforcer_common::{Decision, Verdict, decide};
    use globset::{GlobBuilder, GlobSetBuilder};
    use proptest::prelude::*;

    use super::super::policy::{Origin, rule_id};
    use super::*;

    /// What the oracles join claims with.
    impl Claims {
        /// Both claims together; where both have a rule, that of `self` stands.
        fn or(self, other: Self) -> Self {
            let first = |a, b| if a == NO_RULE { b } else { a };
            Self {
                allow: first(self.allow, other.allow),
                deny: first(self.deny, other.deny),
                audit: first(self.audit, other.audit),
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
            networks: networks.iter().map(|text| text.parse().unwrap()).collect(),
            origin: Origin { file: "a.toml".into(), line: 1, column: 1 },
        }
    }

    fn compiled(rules: Vec<Rule>) -> Compiled {
        Compiled::new(&PolicySet { rules }).unwrap()
    }

    fn name(text: &str) -> Name {
        Name::from_text(text).unwrap()
    }

    fn addr(text: &str) -> Addr {
        match text.parse().unwrap() {
            IpAddr::V4(v4) => Addr::from_v4(v4.octets()),
            IpAddr::V6(v6) => Addr::from_v6(v6.octets()),
        }
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
            let Claims { allow, deny, audit } = compiled.claims(&name(host));
            [allow, deny, audit].map(|id| compiled.rule_name(id))
        };
        assert_eq!(names("a.example"), [None, Some("glob"), None]);
        assert_eq!(names("b.example"), [None, Some("suffix"), None]);
        assert_eq!(names("ab.example"), [Some("except"), Some("glob"), None]);
        assert_eq!(names("c.example"), [None, Some("suffix"), Some("audit")]);
        assert_eq!(names("x.c.example"), [None, Some("suffix"), Some("audit")]);
        assert_eq!(names("example.net"), [None; 3]);
        assert_eq!(compiled.counts(), Counts { rules: 5, patterns: 7, networks: 0 });
    }

    #[test]
    fn claims_join_and_become_an_entry() {
        let (a, b) = (Claims { deny: 1, ..Claims::NONE }, Claims { deny: 2, audit: 3, ..Claims::NONE });
        let both = a.or(b);
        assert_eq!(both, Claims { allow: NO_RULE, deny: 1, audit: 3 });
        let entry = both.entry(10);
        assert_eq!(entry, Entry { allow: Claim::NONE, deny: Claim::new(1, 10), audit: Claim::new(3, 10) });
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
        let prefixes: Vec<_> = compiled.networks().iter().map(|(network, _)| network.prefix).collect();
        assert_eq!(prefixes, [96, 104, 112, 120, 128]);
        let names = |host| {
            let Entry { allow, deny, audit } = compiled.network_claim(addr(host)).unwrap_or_default();
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
    }

    #[test]
    fn more_than_fits_is_an_error_with_a_place() {
        let network = |n: u32| IpNetwork::new(IpAddr::V4(n.into()), 32).unwrap();
        let mut many = rule("many", Action::Deny, &[], &[]);
        many.networks = (0..NETWORKS - 1).map(network).collect();
        assert!(Compiled::new(&PolicySet { rules: vec![many.clone()] }).is_ok());
        many.networks.push(network(NETWORKS));
        let errors = Compiled::new(&PolicySet { rules: vec![many] }).unwrap_err();
        let want = "error: a.toml:1:1: with the rule `many` there are more than 65535 networks";
        assert!(errors[0].to_string().starts_with(want), "{}", errors[0]);

        let globs: Vec<_> = (0..1500).map(|n| format!("{n}{}", "{[!a],b*,c?}".repeat(30))).collect();
        let large = rule("large", Action::Deny, &globs.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        let errors = Compiled::new(&PolicySet { rules: vec![large] }).unwrap_err();
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
            .prop_map(|(a, h, prefix)| (IpAddr::from([a << 14, 0, 0, 0, 0, 0, 0, h]), prefix));
        prop_oneof![v4, v6].prop_map(|(address, prefix)| {
            let within = IpNetwork::new(address, prefix).unwrap();
            IpNetwork::new(within.network(), prefix).unwrap()
        })
    }

    fn destination() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..4_u8, 0..4_u8).prop_map(|(a, d)| IpAddr::from([a << 6, 0, 0, d])),
            (0..4_u16, 0..4_u16).prop_map(|(a, h)| IpAddr::from([a << 14, 0, 0, 0, 0, 0, 0, h])),
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
            prop_assert!(compiled.networks().is_sorted_by(|(a, _), (b, _)| a < b));
            for destination in destinations {
                let entry = compiled.network_claim(addr(&destination.to_string()));
                let got = decide(None, entry.as_ref(), u64::MAX - 1);
                prop_assert_eq!(got, decide_naively(&rules, destination), "{}", destination);
            }
        }
    }
}
