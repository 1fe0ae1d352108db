//! The engine as a whole, held against what it is for: whatever was edited, answered and forgotten, what the kernel's maps
//! decide is what the rules of now say of the answers of now. And while rules change, after each single step, what both
//! versions refuse is refused and what both let pass passes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use enforcer_common::belief::Sender;
use enforcer_common::condition::{Kind, decide, keep_spoken, key, narrow, rows, spare, spoken_of};
use enforcer_common::event::AnswerRecord;
use enforcer_common::limits::SHARED_SECONDS;
use enforcer_common::quota::Quotas;
use enforcer_common::verdict::{BootNanos, NO_RULE};
use enforcer_common::{Addr, Entry, Said, Seats, Verdict};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::compile::{Beside, Compiled, Network};
use super::conditions::Table;
use super::dns::table::TableConfig;
use super::name::Name;
use super::plan::Step;
use super::policy::{self, Lists, Source};
use super::state::{NeverDeny, State};
use super::tables::Budget;

const SECOND: BootNanos = 1_000_000_000;
const FLOOR: u32 = 10;
const CAP: u32 = 100;
const TCP: u16 = 6;
const UDP: u16 = 17;

const NAMES: [&str; 6] = ["a.example", "b.example", "x.b.example", "y.c.example", "c.example", "zz.test"];
/// As it is written, and what it matches, read naively.
type Pattern = (&'static str, fn(&str) -> bool);
const PATTERNS: [Pattern; 5] = [
    ("a.example", |name| name == "a.example"),
    (".b.example", |name| name == "b.example" || name.ends_with(".b.example")),
    ("*.c.example", |name| name.ends_with(".c.example")),
    ("*z*", |name| name.contains('z')),
    ("?.*example", |name| name.as_bytes().get(1) == Some(&b'.') && name.ends_with("example")),
];
/// From here on they are globs.
const GLOBS: usize = 3;
/// As they are written, and the last bytes that they cover.
const NETWORKS: [(&str, std::ops::RangeInclusive<u8>); 3] =
    [("192.0.2.0/30", 0..=3), ("192.0.2.2/31", 2..=3), ("192.0.2.0/24", 0..=255)];
const ADDRESSES: std::ops::RangeInclusive<u8> = 1..=5;
/// No answer denies it, or lets it pass.
const NEVER: u8 = 5;

fn addr(last: u8) -> Addr {
    Addr::from_v4([192, 0, 2, last])
}

#[derive(Clone, Copy, Debug)]
struct Connect {
    port: u16,
    protocol: u16,
    user: u32,
}

fn connects() -> impl Iterator<Item = Connect> {
    let all = [80, 443].into_iter().flat_map(|port| [TCP, UDP].map(|protocol| (port, protocol)));
    all.flat_map(|(port, protocol)| [0, 1000].map(|user| Connect { port, protocol, user }))
}

#[derive(Clone, Debug)]
struct Rule {
    action: Verdict,
    hosts: Vec<usize>,
    networks: Vec<usize>,
    port: Option<u16>,
    protocol: Option<u16>,
    user: Option<u32>,
    /// `shared = "allow"`. Not with networks, and not in an exception.
    unshared: bool,
}

impl Rule {
    fn names(&self, name: &str) -> bool {
        self.hosts.iter().any(|host| PATTERNS[*host].1(name))
    }

    fn write(&self, name: usize) -> String {
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

    fn covers(&self, connect: Connect) -> bool {
        self.port.is_none_or(|port| port == connect.port)
            && self.protocol.is_none_or(|protocol| protocol == connect.protocol)
            && self.user.is_none_or(|user| user == connect.user)
    }
}

/// An answer's word on one address.
#[derive(Clone, Debug)]
struct Told {
    chain: Vec<&'static str>,
    last: u8,
    until: BootNanos,
}

/// What the kernel's maps hold, and what a connect makes of it.
struct Kernel {
    addresses: HashMap<Addr, Entry>,
    networks: BTreeMap<Network, Entry>,
    table: Table,
    default_deny: bool,
    shared: HashMap<Addr, BootNanos>,
}

impl Kernel {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Put(addr, entry) => drop(self.addresses.insert(addr, entry)),
            Step::Remove(addr) => drop(self.addresses.remove(&addr)),
        }
    }

    /// As `connect::look_up` of the kernel side does.
    fn decide(&self, addr: Addr, connect: Connect, now: BootNanos) -> Verdict {
        let around = self.networks.iter().filter(|(network, _)| network.contains(addr));
        let around = around.max_by_key(|(network, _)| network.prefix).map(|(_, entry)| entry);
        let (mut said, mut named) = (Said::NOTHING, Seats::NONE);
        for entry in self.addresses.get(&addr).into_iter().chain(around) {
            said.hear(entry, now);
            if entry.conditional.holds(now) {
                named.add(&entry.conditional.rules);
            }
        }
        narrow(&mut named, &self.table, connect.port, connect.protocol);
        let user = spoken_of(&self.table, key(Kind::User, connect.user.into()));
        keep_spoken(&mut named, &self.table, rows::ANY_USER, user);
        for any in [rows::ANY_GROUP, rows::ANY_CGROUP, rows::ANY_EXECUTABLE] {
            keep_spoken(&mut named, &self.table, any, None);
        }
        spare(&mut named, &self.table, || self.shared.get(&addr).is_some_and(|until| now < *until));
        let decision = said.decide().stronger(decide(&named, &self.table));
        if decision.rule == NO_RULE && self.default_deny { Verdict::Deny } else { decision.verdict }
    }
}

struct Host {
    state: State,
    kernel: Kernel,
    rules: Vec<Rule>,
    told: Vec<Told>,
    /// Addresses that a name led to which no rule refused, and until when its own TTL lasts.
    shared: Vec<(u8, BootNanos)>,
    /// All globs are too much for the kernel.
    late: bool,
    now: BootNanos,
}

impl Host {
    fn new(default_deny: bool, late: bool) -> Self {
        let table = TableConfig { ttl_floor: FLOOR, ttl_cap: CAP, capacity: 1000 };
        let never = NeverDeny { host: HashSet::from([addr(NEVER)]), ..NeverDeny::default() };
        let (addresses, networks) = (HashMap::new(), BTreeMap::new());
        let kernel =
            Kernel { addresses, networks, table: Table::empty(), default_deny, shared: HashMap::new() };
        Self {
            state: State::new(table, never, Quotas::NONE),
            kernel,
            rules: Vec::new(),
            told: Vec::new(),
            shared: Vec::new(),
            late,
            now: SECOND,
        }
    }

    /// What these rules say, read naively: allow beats deny beats audit beats the default.
    fn wanted(&self, rules: &[Rule], last: u8, connect: Connect) -> Verdict {
        let shared = self.shared.iter().any(|(addr, until)| *addr == last && self.now < *until);
        let leads = |rule: &Rule, told: &Told| {
            let named = |name: &&str| rule.names(name);
            told.last == last && self.now < told.until && told.chain.iter().any(named)
        };
        let names = |rule: &Rule| {
            (last != NEVER && self.told.iter().any(|told| leads(rule, told)))
                || rule.networks.iter().any(|network| NETWORKS[*network].1.contains(&last))
        };
        let covers = |rule: &Rule| rule.covers(connect) && !(rule.unshared && shared);
        let speaks = |action| rules.iter().any(|rule| rule.action == action && covers(rule) && names(rule));
        let said = [Verdict::Allow, Verdict::Deny, Verdict::Audit].into_iter().find(|action| speaks(*action));
        said.unwrap_or(if self.kernel.default_deny { Verdict::Deny } else { Verdict::Allow })
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (last, connect) in ADDRESSES.flat_map(|last| connects().map(move |connect| (last, connect))) {
            let (got, want) =
                (self.kernel.decide(addr(last), connect, self.now), self.wanted(&self.rules, last, connect));
            prop_assert_eq!(got, want, "{} {:?}\n{:?}\n{:?}", last, connect, self.rules, self.told);
        }
        Ok(())
    }

    /// While the rules change to these.
    fn check_both(&self, new: &[Rule]) -> Result<(), TestCaseError> {
        let any = |what: fn(&Rule) -> bool| self.rules.iter().chain(new).any(what);
        // How the map of networks changes is the installer's matter. And where the default refuses, an audit rule lets pass
        // what it names: a new one with conditions is in force a moment before new rules that deny (README, "What it does not do yet").
        let late = self.kernel.default_deny && any(|rule| rule.action == Verdict::Audit);
        if any(|rule| !rule.networks.is_empty()) || late {
            return Ok(());
        }
        let refuses = |verdict| verdict == Verdict::Deny;
        for (last, connect) in ADDRESSES.flat_map(|last| connects().map(move |connect| (last, connect))) {
            let versions = [&self.rules, new].map(|rules| refuses(self.wanted(rules, last, connect)));
            let got = refuses(self.kernel.decide(addr(last), connect, self.now));
            let open = versions[0] != versions[1];
            prop_assert!(
                open || got == versions[0],
                "{last} {connect:?} refused: {got}\n{:?}\n{new:?}",
                self.rules
            );
        }
        Ok(())
    }

    /// The daemon's order.
    fn reload(&mut self, new: Vec<Rule>) -> Result<(), TestCaseError> {
        let text: String = new.iter().enumerate().map(|(name, rule)| rule.write(name)).collect();
        let source = Source { path: "p.toml".into(), bytes: text.into_bytes() };
        let set = policy::parse(&[source]).unwrap().set;
        let beside = Beside { conditions: self.kernel.table.clone(), ..Beside::default() };
        let lists = Lists::default();
        let budget = if self.late { Budget::NOTHING } else { Budget::default() };
        let compiled = Compiled::with_budget(&set, &lists, [1, 2], &beside, budget).unwrap();
        let (conditions, networks) = (compiled.conditions().clone(), compiled.networks().clone());
        let steps = self.state.prepare(&compiled, self.kernel.table.active(), self.now);
        self.run(steps, &new)?;
        self.kernel.table = conditions.transition;
        self.check_both(&new)?;
        let steps = self.state.set_policy(compiled, self.now);
        self.run(steps, &new)?;
        self.kernel.table = conditions.table;
        self.check_both(&new)?;
        let steps = self.state.conclude(self.now);
        self.run(steps, &new)?;
        self.kernel.networks = networks;
        self.rules = new;
        // What no innocent name leads to any more is not shared any more.
        self.kernel.shared.retain(|addr, _| self.state.is_shared(*addr, self.now));
        let innocent = |told: &&Told| self.now < told.until && is_innocent(&self.rules, &told.chain);
        let left: HashSet<u8> = self.told.iter().filter(innocent).map(|told| told.last).collect();
        self.shared.retain(|(last, _)| left.contains(last));
        Ok(())
    }

    fn run(&mut self, steps: Vec<Step>, new: &[Rule]) -> Result<(), TestCaseError> {
        for step in steps {
            self.kernel.apply(step);
            self.check_both(new)?;
        }
        Ok(())
    }

    fn answer(&mut self, chain: &[&'static str], addresses: &[(u8, u32)]) {
        let payload = message(chain, addresses);
        let record = AnswerRecord {
            kind: 0,
            len: u32::try_from(payload.len()).unwrap(),
            time: self.now,
            server: addr(53).octets(),
            client: addr(54).octets(),
            sender: Sender::NONE,
            client_port: 1,
            protocol: UDP,
            sequence: 0,
            tcp_flags: 0,
            outcome: 0,
            dropped: 0,
            unentered: 0,
            reserved: [0; 4],
        };
        for (last, ttl) in addresses {
            let until = self.now + BootNanos::from((*ttl).clamp(FLOOR, CAP)) * SECOND;
            self.told.push(Told { chain: chain.to_vec(), last: *last, until });
            let until = self.now + BootNanos::from((*ttl).clamp(SHARED_SECONDS, CAP)) * SECOND;
            if self.knows_innocents() && is_innocent(&self.rules, chain) {
                self.shared.push((*last, until));
            }
            // As `dns_ingress` does.
            let names: Vec<Name> = chain.iter().map(|name| Name::from_text(name).unwrap()).collect();
            let compiled = self.state.compiled().unwrap();
            if compiled.tables().header.shared != 0 && compiled.is_innocent(&names) {
                let known = self.kernel.shared.entry(addr(*last)).or_default();
                *known = until.max(*known);
            }
        }
        let steps = self.state.answer(&record, &payload);
        steps.into_iter().for_each(|step| self.kernel.apply(step));
    }

    /// Whether the kernel side is to know which addresses are shared, and can: it knows no glob that is too much for it.
    fn knows_innocents(&self) -> bool {
        let has_globs = |rule: &Rule| rule.hosts.iter().any(|host| *host >= GLOBS);
        self.rules.iter().any(|rule| rule.unshared) && !(self.late && self.rules.iter().any(has_globs))
    }

    fn pass(&mut self, seconds: u64) {
        self.now += seconds * SECOND;
        let steps = self.state.tick(self.now);
        steps.into_iter().for_each(|step| self.kernel.apply(step));
    }
}

/// No rule refuses or audits any of these names.
fn is_innocent(rules: &[Rule], chain: &[&str]) -> bool {
    let refuses = |rule: &Rule| rule.action != Verdict::Allow && chain.iter().any(|name| rule.names(name));
    !rules.iter().any(refuses)
}

/// An answer about the first name, which the others are aliases of, one after another.
fn message(chain: &[&str], addresses: &[(u8, u32)]) -> Vec<u8> {
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

#[derive(Clone, Debug)]
enum Op {
    Rules(Vec<Rule>),
    Answer(Vec<usize>, Vec<(u8, u32)>),
    Pass(u64),
}

fn rule() -> impl Strategy<Value = Rule> {
    let action = prop::sample::select(vec![Verdict::Allow, Verdict::Deny, Verdict::Audit]);
    let hosts = prop::collection::btree_set(0..PATTERNS.len(), 1..3);
    // Most rules have none, else there is little to see while rules change.
    let networks = prop_oneof![4 => Just(Vec::new()), 1 => prop::sample::subsequence(vec![0, 1, 2], 1..=2)];
    let port = prop::option::of(prop::sample::select(vec![80, 443]));
    let protocol = prop::option::weighted(0.3, prop::sample::select(vec![TCP, UDP]));
    let user = prop::option::weighted(0.3, prop::sample::select(vec![0, 1000]));
    (action, hosts, networks, port, protocol, user, prop::bool::weighted(0.4)).prop_map(
        |(action, hosts, networks, port, protocol, user, unshared)| Rule {
            unshared: unshared && action != Verdict::Allow && networks.is_empty(),
            action,
            hosts: hosts.into_iter().collect(),
            networks,
            port,
            protocol,
            user,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let chain = prop::sample::subsequence((0..NAMES.len()).collect::<Vec<_>>(), 1..=3).prop_shuffle();
    let addresses = prop::collection::vec((ADDRESSES, 0u32..150), 1..4);
    prop_oneof![
        2 => prop::collection::vec(rule(), 0..5).prop_map(Op::Rules),
        3 => (chain, addresses).prop_map(|(chain, addresses)| Op::Answer(chain, addresses)),
        1 => (0u64..60).prop_map(Op::Pass),
    ]
}

proptest! {
    #[test]
    fn the_kernel_decides_as_the_rules_of_now_say_of_the_answers_of_now(
        default_deny: bool, late: bool, ops in prop::collection::vec(op(), 1..16),
    ) {
        let mut host = Host::new(default_deny, late);
        host.reload(Vec::new())?;
        for op in ops {
            match op {
                Op::Rules(rules) => host.reload(rules)?,
                Op::Answer(chain, addresses) => {
                    let chain: Vec<_> = chain.into_iter().map(|name| NAMES[name]).collect();
                    host.answer(&chain, &addresses);
                }
                Op::Pass(seconds) => host.pass(seconds),
            }
            host.check()?;
        }
    }
}
