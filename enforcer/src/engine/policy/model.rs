//! What a policy says, after everything that could be wrong with it was refused.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use enforcer_common::RuleId;
use enforcer_common::verdict::{CANARY_RULE, NO_RULE};
use ipnetwork::IpNetwork;
use schemars::JsonSchema;
use serde::Serialize;

use super::super::record::protocol_name;
use super::lists::{ListFormat, Lists, Said};
use super::pattern::Pattern;
use crate::engine::name::Name;

/// All rules of all files, in file-name order, then in their order in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    pub rules: Vec<Rule>,
}

impl PolicySet {
    /// The same rules, with the networks of their lists beside their own.
    pub fn with_listed_networks(&self, lists: &Lists) -> Cow<'_, Self> {
        let has_any = |rule: &Rule| rule.lists.iter().any(|list| list.format == ListFormat::Networks);
        if !self.rules.iter().any(has_any) {
            return Cow::Borrowed(self);
        }
        let mut set = self.clone();
        for rule in &mut set.rules {
            for list in rule.lists.iter().filter(|list| list.format == ListFormat::Networks) {
                lists.read(list, rule.action, |said| {
                    if let Said::Network(network) = said {
                        rule.networks.push(network);
                    }
                });
            }
        }
        Cow::Owned(set)
    }

    /// The names that rules spell out, each once: whole ones, not those of lists.
    pub fn literals(&self) -> BTreeSet<&Name> {
        let hosts = self.rules.iter().flat_map(|rule| &rule.hosts);
        hosts.filter_map(Pattern::literal).collect()
    }

    /// Every list file once, with a place that names it.
    pub fn lists(&self) -> BTreeMap<Arc<str>, Origin> {
        let lists = self.rules.iter().flat_map(|rule| &rule.lists);
        lists.map(|list| (list.path.clone(), list.origin.clone())).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub id: RuleId,
    pub name: String,
    pub description: Option<String>,
    pub action: Action,
    pub hosts: Vec<Pattern>,
    pub lists: Vec<List>,
    /// Without host bits, and never an IPv6 spelling of an IPv4 network.
    pub networks: Vec<IpNetwork>,
    /// Networks inside its networks of which it says nothing. Of rules with conditions only; no file can write it.
    pub spares: Vec<IpNetwork>,
    pub conditions: Conditions,
    pub origin: Origin,
}

/// What must hold beside the destination. What is empty holds always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// Sorted, without overlap.
    pub ports: Vec<RangeInclusive<u16>>,
    /// IPPROTO_*, sorted.
    pub protocols: Vec<u16>,
    pub scope: Scope,
    /// `shared = "allow"`: the address must be none that a name leads to which no rule refuses.
    pub unshared: bool,
}

impl Conditions {
    /// The rule is decided by the destination alone.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// It covers every connect to an address that is not shared.
    pub fn cover_everyone(&self) -> bool {
        Self { unshared: false, ..self.clone() }.is_empty()
    }
}

/// Of each kind so many are told.
const TOLD: usize = 8;

/// In words, for those who look: `ports 443, 8000-8999; protocols tcp; users alice`.
impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scope { users, groups, units, cgroups, executables } = &self.scope;
        let mut all = Vec::new();
        all.extend(told("ports", &self.ports, |ports| match (ports.start(), ports.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        }));
        all.extend(told("protocols", &self.protocols, |protocol| protocol_name(*protocol).into_owned()));
        all.extend(told("users", users, Account::to_string));
        all.extend(told("groups", groups, Account::to_string));
        for (kind, written) in [("units", units), ("cgroups", cgroups), ("executables", executables)] {
            all.extend(told(kind, written, String::clone));
        }
        all.extend(self.unshared.then(|| "unshared addresses".to_owned()));
        f.write_str(&all.join("; "))
    }
}

fn told<T>(kind: &str, all: &[T], text: impl FnMut(&T) -> String) -> Option<String> {
    let more = match all.len().saturating_sub(TOLD) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let some: Vec<String> = all.iter().take(TOLD).map(text).collect();
    (!all.is_empty()).then(|| format!("{kind} {}{more}", some.join(", ")))
}

/// Who a rule applies to: whoever is in every list that is not empty. Each sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    pub users: Vec<Account>,
    pub groups: Vec<Account>,
    /// One list with `cgroups`: names of systemd units, and paths.
    pub units: Vec<String>,
    pub cgroups: Vec<String>,
    pub executables: Vec<String>,
}

impl Scope {
    /// Whose numbers are to be found.
    pub fn names_accounts(&self) -> bool {
        self.users.iter().chain(&self.groups).any(|account| matches!(account, Account::Name(_)))
    }
}

/// A user or a group as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    Id(u32),
    Name(String),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A list file that a rule takes more hosts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Where it is: as written, from the directory of the policy file on.
    pub path: Arc<str>,
    pub format: ListFormat,
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is let through, whatever other rules say: an exception.
    Allow,
    /// It is refused with EPERM.
    Deny,
    /// It is let through, and reported as what would be denied.
    Audit,
}

impl Action {
    pub const ALL: [Self; 3] = [Self::Deny, Self::Allow, Self::Audit];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

/// Where a rule is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// The rule's number in the kernel's maps: 32-bit FNV-1a of its name, moved aside where that would be `NO_RULE` or
/// `CANARY_RULE`.
///
/// A hash instead of a running number, so that entries of a daemon before this one still name their rule.
/// It must never change: pinned maps outlive the program.
pub fn rule_id(name: &str) -> RuleId {
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.clamp(NO_RULE + 1, CANARY_RULE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_read_well() {
        assert_eq!(Conditions::default().to_string(), "");
        let scope = Scope {
            users: vec![Account::Id(1000), Account::Name("alice".into())],
            executables: (0..10).map(|n| format!("/x{n}")).collect(),
            ..Scope::default()
        };
        let unshared = Conditions { unshared: true, ..Conditions::default() };
        assert_eq!(unshared.to_string(), "unshared addresses");
        assert!(unshared.cover_everyone() && !unshared.is_empty());
        let all =
            Conditions { ports: vec![443..=443, 8000..=8999], protocols: vec![6, 17], scope, ..unshared };
        assert_eq!(
            all.to_string(),
            "ports 443, 8000-8999; protocols tcp, udp; users 1000, alice; \
             executables /x0, /x1, /x2, /x3, /x4, /x5, /x6, /x7 and 2 more; unshared addresses"
        );
    }

    #[test]
    fn rule_ids_are_fnv_1a() {
        // From the reference test suite of the FNV authors (draft-eastlake-fnv, appendix C).
        for (name, id) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            assert_eq!(rule_id(name), id, "{name}");
        }
    }
}
