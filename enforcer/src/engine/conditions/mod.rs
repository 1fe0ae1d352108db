//! The table of conditional rules: who sits where, and which ports, protocols and processes each rule speaks of.
//!
//! The kernel side reads it with the functions of `enforcer_common::condition`; here it is made, joined with the one
//! before it for the time of a reload, and read back from what a daemon before this one left.

mod sheet;

use std::collections::{BTreeMap, HashMap};

use enforcer_common::condition::{Rows, SEATS, id, rows};
use enforcer_common::{RuleId, Seats};

use super::policy::{Account, Action, Diagnostic, Lists, Rule, Scope};
use sheet::Sheet;

/// A policy has at most so many conditional rules.
pub const CONDITIONAL: usize = SEATS as usize / 2;

/// Numbers of users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    pub users: HashMap<String, u32>,
    pub groups: HashMap<String, u32>,
}

/// One generation, as the kernel reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Seats>,
}

impl Rows for Table {
    fn row(&self, index: u32) -> Option<&Seats> {
        self.rows.get(index as usize)
    }
}

/// Why a table cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMany {
    /// Old and new rules do not find a seat each; when the old ones are gone, they may.
    Seats,
    /// Sets of rules that ports tell apart, or users, groups, units, paths.
    Things,
}

impl Table {
    /// Without a rule.
    pub fn empty() -> Self {
        Self { rows: vec![Seats::NONE] }
    }

    /// What a daemon before this one left.
    pub fn adopt(rows: Vec<Seats>) -> Self {
        Self { rows }
    }

    /// `key`: of the hashes; a table that stands beside another has the same one.
    pub fn new(seated: &[Seated<'_>], key: [u64; 2]) -> Result<Self, TooMany> {
        if seated.is_empty() {
            return Ok(Self::empty());
        }
        let mut sheet = Sheet::new(key);
        seated.iter().try_for_each(|seated| sheet.seat(seated))?;
        sheet.rows().map(|rows| Self { rows })
    }

    /// Of both, for the time in which some addresses carry the seats of the one and some those of the other.
    pub fn with(&self, other: &Self) -> Result<Self, TooMany> {
        if self.active().is_none() || self == other {
            return Ok(other.clone());
        }
        if other.active().is_none() {
            return Ok(self.clone());
        }
        Sheet::read(self).join(&Sheet::read(other))?.rows().map(|rows| Self { rows })
    }

    /// The same, but that of the rules that audit only these decide. The others keep their seats.
    pub fn with_audits(&self, audits: Seats) -> Self {
        let mut table = self.clone();
        if let Some(row) = table.rows.get_mut(rows::AUDIT as usize) {
            row.keep(&audits);
        }
        table
    }

    /// The same, but that of the rules that spare shared addresses only these decide. The others keep their seats.
    pub fn with_unshared(&self, unshared: Seats) -> Self {
        let (mut table, mut gone) = (self.clone(), self.unshared());
        gone.drop(&unshared);
        for action in [rows::DENY, rows::AUDIT] {
            if let Some(row) = table.rows.get_mut(action as usize) {
                row.drop(&gone);
            }
        }
        table
    }

    pub fn rows(&self) -> &[Seats] {
        &self.rows
    }

    /// Seats that are taken.
    pub fn active(&self) -> Seats {
        self.rows.first().copied().unwrap_or_default()
    }

    /// The seats of rules with this action.
    pub fn by_action(&self, action: Action) -> Seats {
        self.row(action_row(action)).copied().unwrap_or_default()
    }

    /// The seats of rules that refuse no shared address.
    pub fn unshared(&self) -> Seats {
        self.row(rows::SHARED).copied().unwrap_or_default()
    }

    pub fn rule(&self, seat: u32) -> RuleId {
        id(self, seat)
    }

    /// The key of the hashes, if there is one already.
    pub fn key(&self) -> Option<[u64; 2]> {
        self.row(rows::HEADER).map(|header| [header.0[2], header.0[3]])
    }

    /// The seat of each rule: the one it has, or a free one. Who says something else than before is somebody else.
    pub fn assign(&self, fingerprints: &[u64]) -> Result<Vec<u32>, TooMany> {
        let sitting: BTreeMap<u64, u32> =
            self.active().iter().map(|seat| (sheet::fingerprint(self, seat), seat)).collect();
        let full = self.active();
        let mut free = (0..SEATS).filter(|seat| !full.has(*seat));
        let mut seat =
            |print: &u64| sitting.get(print).copied().or_else(|| free.next()).ok_or(TooMany::Seats);
        fingerprints.iter().map(&mut seat).collect()
    }
}

const fn action_row(action: Action) -> u32 {
    match action {
        Action::Allow => rows::ALLOW,
        Action::Deny => rows::DENY,
        Action::Audit => rows::AUDIT,
    }
}

/// A conditional rule on its seat.
#[derive(Clone, Copy, Debug)]
pub struct Seated<'a> {
    pub seat: u32,
    pub rule: &'a Rule,
    pub scope: &'a Resolved,
    pub fingerprint: u64,
}

/// A scope with numbers for names. `None` says nothing, an empty list speaks of nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resolved {
    pub users: Option<Vec<u32>>,
    pub groups: Option<Vec<u32>>,
}

impl Resolved {
    pub fn new(scope: &Scope, accounts: &Accounts) -> Self {
        let numbers = |written: &[Account], known: &HashMap<String, u32>| {
            let number = |account: &Account| match account {
                Account::Id(id) => Some(*id),
                Account::Name(name) => known.get(name).copied(),
            };
            (!written.is_empty()).then(|| written.iter().filter_map(number).collect())
        };
        Self {
            users: numbers(&scope.users, &accounts.users),
            groups: numbers(&scope.groups, &accounts.groups),
        }
    }
}

/// A hash of everything that a rule says, list files included. Two rules that say different things have different ones
/// but by a chance of 2^-64; nobody who could look for one has a say here.
pub fn fingerprint(rule: &Rule, scope: &Resolved, lists: &Lists) -> u64 {
    let mut hash = Fnv::default();
    let Rule {
        id: _,
        name,
        description: _,
        action,
        hosts,
        lists: files,
        networks,
        spares,
        conditions,
        origin: _,
    } = rule;
    hash.text(name);
    hash.text(action.as_str());
    hash.all(hosts.iter().map(ToString::to_string));
    hash.all(networks.iter().map(ToString::to_string));
    if !spares.is_empty() {
        hash.all(spares.iter().map(ToString::to_string));
    }
    hash.all(conditions.ports.iter().map(|range| format!("{}-{}", range.start(), range.end())));
    hash.all(conditions.protocols.iter().map(ToString::to_string));
    let Scope { users: _, groups: _, units, cgroups, executables } = &conditions.scope;
    for numbers in [&scope.users, &scope.groups] {
        hash.all(numbers.iter().map(|numbers| format!("{numbers:?}")));
    }
    for texts in [units, cgroups, executables] {
        hash.all(texts);
    }
    if conditions.unshared {
        hash.text("unshared");
    }
    for list in files {
        hash.text(list.format.as_str());
        hash.bytes(lists.0.get(&list.path).map_or(&[][..], Vec::as_slice));
    }
    hash.0
}

/// FNV-1a of texts, each with its length: it must stay the same, because pinned tables outlive the program.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn bytes(&mut self, bytes: &[u8]) {
        let len = (bytes.len() as u64).to_le_bytes();
        for byte in len.iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn all<T: AsRef<str>>(&mut self, texts: impl IntoIterator<Item = T>) {
        let texts: Vec<T> = texts.into_iter().collect();
        self.text(&texts.len().to_string());
        texts.iter().for_each(|text| self.text(text.as_ref()));
    }
}

/// The error for a policy whose conditional rules are more than there is room for.
pub fn too_many(rules: &[Rule], why: TooMany) -> Vec<Diagnostic> {
    let last = rules.iter().rfind(|rule| !rule.conditions.is_empty());
    let (message, hint) = match why {
        TooMany::Seats => (
            format!(
                "more than {CONDITIONAL} rules have `ports`, `protocols`, a `scope` or `shared = \"allow\"`, replaced ones included"
            ),
            "join rules that have the same conditions",
        ),
        TooMany::Things => (
            "the rules' ports, users, groups, units and paths together are more than the kernel has room for"
                .into(),
            "write ranges of ports and groups of users instead of many single ones",
        ),
    };
    last.map(|rule| Diagnostic::about_rule(&rule.origin, message, hint.to_owned())).into_iter().collect()
}

#[cfg(test)]
mod tests;
