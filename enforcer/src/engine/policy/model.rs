//! What a policy says, after everything that could be wrong with it was refused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use enforcer_common::RuleId;
use enforcer_common::verdict::{CANARY_RULE, NO_RULE};
use ipnetwork::IpNetwork;
use schemars::JsonSchema;
use serde::Serialize;

use super::lists::{ListFormat, Lists, Said};
use super::pattern::Pattern;

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
}

impl Conditions {
    /// The rule is decided by the destination alone.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
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
    fn rule_ids_are_fnv_1a() {
        // From the reference test suite of the FNV authors (draft-eastlake-fnv, appendix C).
        for (name, id) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            assert_eq!(rule_id(name), id, "{name}");
        }
    }
}
