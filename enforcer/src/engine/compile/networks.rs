//! Networks of all rules as the kernel's trie wants them: each with the claims of those around it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv6Addr;

use enforcer_common::limits::NETWORKS;
use enforcer_common::name::Match;
use enforcer_common::verdict::FOREVER;
use enforcer_common::{Addr, Entry};
use ipnetwork::IpNetwork;

use super::Claims;
use crate::engine::policy::{Diagnostic, Rule};
use crate::engine::reload::Part;

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
    pub fn covers(&self, inner: &Self) -> bool {
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

/// What the trie holds.
pub(super) fn merged(rules: &[Rule], said: &[Match]) -> Result<BTreeMap<Network, Entry>, Vec<Diagnostic>> {
    let (mut v4, mut v6) = (BTreeMap::new(), BTreeMap::new());
    for (rule, said) in rules.iter().zip(said) {
        for network in rule.networks.iter().map(|network| Network::from(*network)) {
            let family = if Network::V4.covers(&network) { &mut v4 } else { &mut v6 };
            let claimed = family.entry(network).or_insert(Match::NONE);
            *claimed = claimed.merge(*said);
        }
        // Places to take back what it says about what is around them.
        for network in rule.spares.iter().map(|network| Network::from(*network)) {
            let family = if Network::V4.covers(&network) { &mut v4 } else { &mut v6 };
            family.entry(network).or_insert(Match::NONE);
        }
        if v4.len() + v6.len() >= NETWORKS as usize {
            return Err(too_many_networks(rule));
        }
    }
    shield_v4(&mut v4, &v6);
    let (mut merged, mut merged_v6) = (inherited(v4), inherited(v6));
    for (rule, said) in rules.iter().zip(said).filter(|(rule, _)| !rule.spares.is_empty()) {
        let spares: Vec<Network> = rule.spares.iter().map(|network| Network::from(*network)).collect();
        let (v4, v6): (Vec<_>, Vec<_>) = spares.into_iter().partition(|network| Network::V4.covers(network));
        spare(&mut merged, &v4, said);
        spare(&mut merged_v6, &v6, said);
    }
    merged.extend(merged_v6);
    Ok(merged.into_iter().map(|(network, by)| (network, Claims::from(by).entry(FOREVER))).collect())
}

/// A trie that says everywhere what two others say there, of each this part.
pub fn joined(
    old: &BTreeMap<Network, Entry>,
    stay: Part,
    new: &BTreeMap<Network, Entry>,
    come: Part,
) -> BTreeMap<Network, Entry> {
    let all: BTreeSet<&Network> = old.keys().chain(new.keys()).collect();
    let (mut around_old, mut around_new, mut around) =
        (Around::default(), Around::default(), Around::default());
    let mut joined = BTreeMap::new();
    for network in all {
        let said = |entry: Option<Entry>, part: Part| part.of(entry.unwrap_or(Entry::NONE));
        let said_old = said(around_old.step(network, old.get(network)), stay);
        let entry = said_old.merge(said(around_new.step(network, new.get(network)), come));
        // One that says what is said around it anyway may be yet to come, or be gone already.
        if around.step(network, None).unwrap_or(Entry::NONE) != entry {
            around.step(network, Some(&entry));
            joined.insert(*network, entry);
        }
    }
    joined
}

/// One change to the kernel's trie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Network, Entry),
    Remove(Network),
}

/// From one trie to another. Each change makes of what one or the other says about an address what the other says: a network
/// comes before those around it, and goes after them.
pub fn changes(from: &BTreeMap<Network, Entry>, to: &BTreeMap<Network, Entry>) -> Vec<Change> {
    let put = |(network, entry): (&Network, &Entry)| {
        (from.get(network) != Some(entry)).then_some(Change::Put(*network, *entry))
    };
    let gone = from.keys().filter(|network| !to.contains_key(network));
    to.iter().rev().filter_map(put).chain(gone.map(|network| Change::Remove(*network))).collect()
}

/// The networks around the one at hand, the widest first.
#[derive(Default)]
struct Around(Vec<(Network, Entry)>);

impl Around {
    /// What is said about a network, if not about itself then about the narrowest around it.
    fn step(&mut self, network: &Network, itself: Option<&Entry>) -> Option<Entry> {
        while self.0.pop_if(|(outer, _)| !outer.covers(network)).is_some() {}
        self.0.extend(itself.map(|entry| (*network, *entry)));
        self.0.last().map(|(_, entry)| *entry)
    }
}

/// An IPv6 network so wide that it holds the IPv4-mapped range (`::/0`) speaks about IPv6 only. The trie has one
/// key space for both, so IPv4 gets a root of its own, where lookups for IPv4 end.
fn shield_v4(v4: &mut BTreeMap<Network, Match>, v6: &BTreeMap<Network, Match>) {
    if v6.keys().any(|network| network.covers(&Network::V4)) {
        v4.entry(Network::V4).or_insert(Match::NONE);
    }
}

/// Adds to each network the claims of those around it. In the order of the map a network comes before what
/// it contains, and networks nest or are apart: a stack of the open ones is enough.
fn inherited(own: BTreeMap<Network, Match>) -> Vec<(Network, Match)> {
    let mut all: Vec<(Network, Match)> = Vec::with_capacity(own.len());
    let mut open: Vec<usize> = Vec::new();
    for (network, claimed) in own {
        while open.pop_if(|&mut outer| !all[outer].0.covers(&network)).is_some() {}
        let around = open.last().map_or(Match::NONE, |&outer| all[outer].1);
        open.push(all.len());
        all.push((network, claimed.merge(around)));
    }
    all
}

/// Takes back what a rule says about all that lies in these networks: its seat, for only rules with conditions have some.
fn spare(all: &mut [(Network, Match)], spares: &[Network], said: &Match) {
    for (network, claimed) in all {
        if spares.iter().any(|spared| spared.covers(network)) {
            claimed.conditional.drop(&said.conditional);
        }
    }
}

fn too_many_networks(rule: &Rule) -> Vec<Diagnostic> {
    let message = format!("with the rule `{}` there are more than {} networks", rule.name, NETWORKS - 1);
    vec![Diagnostic::about_rule(&rule.origin, message, "join networks that lie side by side".to_owned())]
}
