//! What policies and answers are tried, what they come to, read naively, and what a connect makes of the kernel's entries. For
//! the tests of the engine, and, included there, for those on real maps.

use std::fmt::Write as _;

use enforcer_common::condition::{
    Kind, Rows, decide as decide_by, keep_spoken, key, narrow, rows, spare, spoken_of,
};
use enforcer_common::limits::SHARED_SECONDS;
use enforcer_common::verdict::{BootNanos, NO_RULE};
use enforcer_common::{Addr, Entry, Said, Seats, Verdict};

pub(crate) const SECOND: BootNanos = 1_000_000_000;
pub(crate) const TCP: u16 = 6;
pub(crate) const UDP: u16 = 17;

pub(crate) const NAMES: [&str; 6] =
    ["a.example", "b.example", "x.b.example", "y.c.example", "c.example", "zz.test"];
/// As it is written, and what it matches, read naively.
pub(crate) type Pattern = (&'static str, fn(&str) -> bool);
pub(crate) const PATTERNS: [Pattern; 5] = [
    ("a.example", |name| name == "a.example"),
    (".b.example", |name| name == "b.example" || name.ends_with(".b.example")),
    ("*.c.example", |name| name.ends_with(".c.example")),
    ("*z*", |name| name.contains('z')),
    ("?.*example", |name| name.as_bytes().get(1) == Some(&b'.') && name.ends_with("example")),
];
/// From here on they are globs.
pub(crate) const GLOBS: usize = 3;
/// As they are written, and the last bytes that they cover.
pub(crate) const NETWORKS: [(&str, std::ops::RangeInclusive<u8>); 3] =
    [("192.0.2.0/30", 0..=3), ("192.0.2.2/31", 2..=3), ("192.0.2.0/24", 0..=255)];
pub(crate) const ADDRESSES: std::ops::RangeInclusive<u8> = 1..=5;
/// No answer denies it, or lets it pass.
pub(crate) const NEVER: u8 = 5;
pub(crate) fn addr(last: u8) -> Addr {
    Addr::from_v4([192, 0, 2, last])
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Connect {
    pub(crate) port: u16,
    pub(crate) protocol: u16,
    pub(crate) user: u32,
}

/// Every connect that is tried.
pub(crate) fn connects() -> impl Iterator<Item = Connect> {
    let all = [80, 443].into_iter().flat_map(|port| [TCP, UDP].map(|protocol| (port, protocol)));
    all.flat_map(|(port, protocol)| [0, 1000].map(|user| Connect { port, protocol, user }))
}

#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) action: Verdict,
    pub(crate) hosts: Vec<usize>,
    pub(crate) networks: Vec<usize>,
    pub(crate) port: Option<u16>,
    pub(crate) protocol: Option<u16>,
    pub(crate) user: Option<u32>,
    /// `shared = "allow"`. Not with networks, and not in an exception.
    pub(crate) unshared: bool,
}

impl Rule {
    fn names(&self, name: &str) -> bool {
        self.hosts.iter().any(|host| PATTERNS[*host].1(name))
    }

    pub(crate) fn write(&self, name: usize) -> String {
        let action = match self.action {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
            Verdict::Audit => "audit",
        };
        let list = |all: Vec<&str>| all.iter().map(|one| format!("'{one}'")).collect::<Vec<_>>().join(", ");
        let mut text = format!("[[rule]]\nname = 'r{name}'\naction = '{action}'\n");
        let hosts = list(self.hosts.iter().map(|host| PATTERNS[*host].0).collect());
        let networks = list(self.networks.iter().map(|network| NETWORKS[*network].0).collect());
        for (key, values) in [("hosts", hosts), ("networks", networks)] {
            if !values.is_empty() {
                let _ = writeln!(text, "{key} = [{values}]");
            }
        }
        if self.unshared {
            text.push_str("shared = 'allow'\n");
        }
        if let Some(port) = self.port {
            let _ = writeln!(text, "ports = [{port}]");
        }
        if let Some(protocol) = self.protocol {
            let _ = writeln!(text, "protocols = ['{}']", if protocol == TCP { "tcp" } else { "udp" });
        }
        if let Some(user) = self.user {
            let _ = writeln!(text, "[rule.scope]\nusers = [{user}]");
        }
        text
    }

    pub(crate) fn covers(&self, connect: Connect) -> bool {
        self.port.is_none_or(|port| port == connect.port)
            && self.protocol.is_none_or(|protocol| protocol == connect.protocol)
            && self.user.is_none_or(|user| user == connect.user)
    }
}

/// An answer's word on one address.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) chain: Vec<&'static str>,
    pub(crate) last: u8,
    pub(crate) until: BootNanos,
}

/// An address that a name led to which no rule refused, and until when its own TTL lasts.
pub(crate) type Shared = (u8, BootNanos);

/// What an answer makes shared where these rules are matched. `late`: all globs are too much for the kernel side.
pub(crate) fn shared_by(
    rules: &[Rule],
    (chain, addresses): (&[&str], &[(u8, u32)]),
    cap: u32,
    late: bool,
    now: BootNanos,
) -> Vec<Shared> {
    let has_globs = |rule: &Rule| rule.hosts.iter().any(|host| *host >= GLOBS);
    let knows_all = !(late && rules.iter().any(has_globs));
    if !(knows_all && rules.iter().any(|rule| rule.unshared) && is_innocent(rules, chain)) {
        return Vec::new();
    }
    let until = |ttl: u32| now + BootNanos::from(ttl.max(SHARED_SECONDS).min(cap)) * SECOND;
    addresses.iter().map(|(last, ttl)| (*last, until(*ttl))).collect()
}

/// Those that a name still leads to which these rules do not refuse.
pub(crate) fn still_shared(rules: &[Rule], told: &[Told], shared: &[Shared], now: BootNanos) -> Vec<Shared> {
    let leads = |told: &Told, last| told.last == last && now < told.until && is_innocent(rules, &told.chain);
    shared.iter().filter(|(last, _)| told.iter().any(|told| leads(told, *last))).copied().collect()
}

/// No rule refuses or audits any of these names.
fn is_innocent(rules: &[Rule], chain: &[&str]) -> bool {
    let refuses = |rule: &Rule| rule.action != Verdict::Allow && chain.iter().any(|name| rule.names(name));
    !rules.iter().any(refuses)
}

/// What these rules say, read naively: allow beats deny beats audit beats the default.
pub(crate) fn wanted(
    rules: &[Rule],
    (told, shared): (&[Told], &[Shared]),
    (last, connect): (u8, Connect),
    default_deny: bool,
    now: BootNanos,
) -> Verdict {
    let shared = shared.iter().any(|(addr, until)| *addr == last && now < *until);
    let leads = |rule: &Rule, told: &Told| {
        let named = |name: &&str| rule.names(name);
        told.last == last && now < told.until && told.chain.iter().any(named)
    };
    let names = |rule: &Rule| {
        (last != NEVER && told.iter().any(|told| leads(rule, told)))
            || rule.networks.iter().any(|network| NETWORKS[*network].1.contains(&last))
    };
    let covers = |rule: &Rule| rule.covers(connect) && !(rule.unshared && shared);
    let speaks = |action| rules.iter().any(|rule| rule.action == action && covers(rule) && names(rule));
    let said = [Verdict::Allow, Verdict::Deny, Verdict::Audit].into_iter().find(|action| speaks(*action));
    said.unwrap_or(if default_deny { Verdict::Deny } else { Verdict::Allow })
}

/// As `connect::look_up` of the kernel side does, by what its maps say about the destination.
pub(crate) fn decide(
    entries: &[Entry],
    shared: bool,
    table: &impl Rows,
    connect: Connect,
    default_deny: bool,
    now: BootNanos,
) -> Verdict {
    let (mut said, mut named) = (Said::NOTHING, Seats::NONE);
    for entry in entries {
        said.hear(entry, now);
        if entry.conditional.holds(now) {
            named.add(&entry.conditional.rules);
        }
    }
    narrow(&mut named, table, connect.port, connect.protocol);
    let user = spoken_of(table, key(Kind::User, connect.user.into()));
    keep_spoken(&mut named, table, rows::ANY_USER, user);
    for any in [rows::ANY_GROUP, rows::ANY_CGROUP, rows::ANY_EXECUTABLE] {
        keep_spoken(&mut named, table, any, None);
    }
    spare(&mut named, table, || shared);
    let decision = said.decide().stronger(decide_by(&named, table));
    if decision.rule == NO_RULE && default_deny { Verdict::Deny } else { decision.verdict }
}

pub(crate) type Answered = (Vec<&'static str>, Vec<(u8, u32)>);

/// An answer about the first name, which the others are aliases of, one after another.
pub(crate) fn message(chain: &[&str], addresses: &[(u8, u32)]) -> Vec<u8> {
    let name = |text: &str| -> Vec<u8> {
        let labels = text.split('.').flat_map(|label| {
            let len = [u8::try_from(label.len()).unwrap()];
            [&len[..], label.as_bytes()].concat()
        });
        labels.chain([0]).collect()
    };
    let record = |owner: &str, kind: u8, ttl: u32, data: &[u8]| {
        let len = u16::try_from(data.len()).unwrap().to_be_bytes();
        [&name(owner)[..], &[0, kind, 0, 1], &ttl.to_be_bytes(), &len, data].concat()
    };
    let count = u8::try_from(chain.len() - 1 + addresses.len()).unwrap();
    let mut bytes = vec![0, 1, 0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
    bytes.extend(name(chain[0]));
    bytes.extend([0, 1, 0, 1]);
    for pair in chain.windows(2) {
        bytes.extend(record(pair[0], 5, 1000, &name(pair[1])));
    }
    for (last, ttl) in addresses {
        bytes.extend(record(chain[chain.len() - 1], 1, *ttl, &[192, 0, 2, *last]));
    }
    bytes
}
