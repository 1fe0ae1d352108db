//! Rules compiled for asking: which rules name this host, which networks stand in the trie.

use std::collections::{BTreeMap, HashMap};

use enforcer_common::limits::NETWORKS;
use enforcer_common::verdict::{BootNanos, FOREVER, NO_RULE};
use enforcer_common::{Addr, Claim, Entry, RuleId};
use globset::GlobSet;
use ipnetwork::IpNetwork;

use super::name::Name;
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

    /// Both claims together; where both have a rule, that of `self` stands.
    pub fn or(self, other: Self) -> Self {
        let first = |a, b| if a == NO_RULE { b } else { a };
        Self {
            allow: first(self.allow, other.allow),
            deny: first(self.deny, other.deny),
            audit: first(self.audit, other.audit),
        }
    }

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
        self.by_name(first)
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
