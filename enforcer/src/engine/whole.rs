//! The engine as a whole, held against what it is for: whatever was edited, answered and forgotten, what the kernel's maps
//! decide is what the rules of now say of the answers of now. And while rules change, after each single step and with
//! answers that come meanwhile, what both versions refuse is refused and what both let pass passes.

mod model;

use std::collections::{BTreeMap, HashMap, HashSet};

use enforcer_common::belief::Sender;
use enforcer_common::event::AnswerRecord;
use enforcer_common::limits::SHARED_SECONDS;
use enforcer_common::quota::Quotas;
use enforcer_common::verdict::{BootNanos, Conditional};
use enforcer_common::{Addr, Claim, Entry, Verdict};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::compile::{Beside, Change, Compiled, Network, changes};
use super::conditions::Table;
use super::dns::table::TableConfig;
use super::name::Name;
use super::plan::{Matcher as _, Step};
use super::policy::{self, Lists, Source};
use super::reload::{self, Begun, Kernel as _};
use super::state::{NeverDeny, State};
use super::tables::{Budget, Tables};
use model::{
    ADDRESSES, Answered, Connect, NAMES, NETWORKS, NEVER, PATTERNS, Rule, SECOND, Shared, TCP, Told, UDP,
    addr, connects, decide, message, shared_by, still_shared, wanted,
};

const FLOOR: u32 = 10;
const CAP: u32 = 100;
/// Within so many steps of a reload answers come.
const STEPS: usize = 60;

/// What the kernel's maps hold, and what a connect makes of it.
#[derive(Clone)]
struct Maps {
    addresses: HashMap<Addr, Entry>,
    /// What the packet path entered, before the last change of its tables and since.
    answered: [HashMap<Addr, Entry>; 2],
    networks: BTreeMap<Network, Entry>,
    table: Table,
    shared: HashMap<Addr, BootNanos>,
    default_deny: bool,
}

/// After a step of a reload.
struct Seen {
    maps: Maps,
    /// How many answers had been told.
    answers: usize,
    shared: Vec<Shared>,
}

struct Kernel {
    maps: Maps,
    /// What the packet path matches with.
    matching: Option<(Compiled, Vec<Rule>)>,
    next: Option<(Compiled, Vec<Rule>)>,
    /// All globs are too much for it.
    late: bool,
    told: Vec<Told>,
    /// So many were taken over.
    read: usize,
    shared: Vec<Shared>,
    /// Reported, and not read yet.
    ring: Vec<(AnswerRecord, Vec<u8>)>,
    now: BootNanos,
    /// After so many steps of a reload these answers come.
    under_way: Vec<(usize, Answered)>,
    steps: usize,
    seen: Vec<Seen>,
}

impl Kernel {
    fn stepped(&mut self) {
        self.steps += 1;
        self.see();
        while let Some(at) = self.under_way.iter().position(|(at, _)| *at <= self.steps) {
            let (_, (chain, addresses)) = self.under_way.remove(at);
            self.answer(&chain, &addresses);
            self.see();
        }
    }

    fn see(&mut self) {
        let (maps, answers, shared) = (self.maps.clone(), self.told.len(), self.shared.clone());
        self.seen.push(Seen { maps, answers, shared });
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put(addr, entry) => drop(self.maps.addresses.insert(addr, entry)),
            Step::Remove(addr) => drop(self.maps.addresses.remove(&addr)),
        }
        self.stepped();
    }

    /// What the packet path does before it delivers the answer.
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
        let names: Vec<Name> = chain.iter().map(|name| Name::from_text(name).unwrap()).collect();
        for (last, ttl) in addresses {
            let until = self.now + BootNanos::from((*ttl).clamp(FLOOR, CAP)) * SECOND;
            self.told.push(Told { chain: chain.to_vec(), last: *last, until });
            let Some((by, _)) = &self.matching else { continue };
            let entry = by.entry(&names, until);
            if entry != Entry::NONE && *last != NEVER {
                let known = self.maps.answered[1].entry(addr(*last)).or_insert(Entry::NONE);
                *known = live(*known, self.now).merge(entry);
            }
            if by.tables().header.shared != 0 && by.is_innocent(&names) {
                let until = self.now + BootNanos::from((*ttl).clamp(SHARED_SECONDS, CAP)) * SECOND;
                let known = self.maps.shared.entry(addr(*last)).or_default();
                *known = until.max(*known);
            }
        }
        if let Some((_, rules)) = &self.matching {
            self.shared.extend(shared_by(rules, (chain, addresses), CAP, self.late, self.now));
        }
        self.ring.push((record, payload));
    }
}

impl reload::Kernel for Kernel {
    fn addresses(&mut self, steps: Vec<Step>, _: &mut State) {
        steps.into_iter().for_each(|step| self.step(step));
    }

    fn networks(&self) -> &BTreeMap<Network, Entry> {
        &self.maps.networks
    }

    fn set_networks(&mut self, wanted: &BTreeMap<Network, Entry>) {
        for change in changes(&self.maps.networks, wanted) {
            match change {
                Change::Put(network, entry) => drop(self.maps.networks.insert(network, entry)),
                Change::Remove(network) => drop(self.maps.networks.remove(&network)),
            }
            self.stepped();
        }
    }

    fn conditions(&self) -> &Table {
        &self.maps.table
    }

    fn enforce(&mut self, conditions: &Table) -> bool {
        self.maps.table = conditions.clone();
        self.stepped();
        true
    }

    fn install(&mut self, _: &Tables) -> bool {
        self.matching = self.next.take();
        self.maps.answered.swap(0, 1);
        self.stepped();
        true
    }

    fn retired(&self) -> Vec<(Addr, Entry)> {
        self.maps.answered[0].iter().map(|(addr, entry)| (*addr, *entry)).collect()
    }

    fn review_shared(&mut self, is_shared: impl Fn(Addr) -> bool) {
        self.maps.shared.retain(|addr, _| is_shared(*addr));
        let (_, rules) = self.matching.as_ref().unwrap();
        self.shared = still_shared(rules, &self.told[..self.read], &self.shared, self.now);
        self.stepped();
    }
}

/// The claims that hold.
fn live(entry: Entry, now: BootNanos) -> Entry {
    let claim = |claim: Claim| if claim.holds(now) { claim } else { Claim::NONE };
    let conditional = if entry.conditional.holds(now) { entry.conditional } else { Conditional::NONE };
    Entry { allow: claim(entry.allow), deny: claim(entry.deny), audit: claim(entry.audit), conditional }
}

impl Maps {
    fn decide(&self, addr: Addr, connect: Connect, now: BootNanos) -> Verdict {
        let around = self.networks.iter().filter(|(network, _)| network.contains(addr));
        let around = around.max_by_key(|(network, _)| network.prefix).map(|(_, entry)| entry);
        let answered = self.answered.iter().filter_map(|half| half.get(&addr));
        let entries = self.addresses.get(&addr).into_iter().chain(answered).chain(around);
        let entries: Vec<Entry> = entries.copied().collect();
        let shared = self.shared.get(&addr).is_some_and(|until| now < *until);
        decide(&entries, shared, &self.table, connect, self.default_deny, now)
    }
}

struct Host {
    state: State,
    kernel: Kernel,
    rules: Vec<Rule>,
}

impl Host {
    fn new(default_deny: bool, late: bool) -> Self {
        let table = TableConfig { ttl_floor: FLOOR, ttl_cap: CAP, capacity: 1000 };
        let never = NeverDeny { host: HashSet::from([addr(NEVER)]), ..NeverDeny::default() };
        let maps = Maps {
            addresses: HashMap::new(),
            answered: [HashMap::new(), HashMap::new()],
            networks: BTreeMap::new(),
            table: Table::empty(),
            shared: HashMap::new(),
            default_deny,
        };
        let kernel = Kernel {
            maps,
            matching: None,
            next: None,
            late,
            told: Vec::new(),
            read: 0,
            shared: Vec::new(),
            ring: Vec::new(),
            now: SECOND,
            under_way: Vec::new(),
            steps: 0,
            seen: Vec::new(),
        };
        Self { state: State::new(table, never, Quotas::NONE, default_deny), kernel, rules: Vec::new() }
    }

    fn wanted(&self, rules: &[Rule], known: (&[Told], &[Shared]), which: (u8, Connect)) -> Verdict {
        wanted(rules, known, which, self.kernel.maps.default_deny, self.kernel.now)
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let Kernel { maps, told, shared, now, .. } = &self.kernel;
        for (last, connect) in ADDRESSES.flat_map(|last| connects().map(move |connect| (last, connect))) {
            let (got, want) = (
                maps.decide(addr(last), connect, *now),
                self.wanted(&self.rules, (told, shared), (last, connect)),
            );
            prop_assert_eq!(got, want, "{} {:?}\n{:?}\n{:?}", last, connect, self.rules, told);
        }
        Ok(())
    }

    /// What was seen while the rules changed to these. `known`: so many answers had been taken over before, and `shared`
    /// these addresses.
    fn check_both(&self, new: &[Rule], known: usize, shared: &[Shared]) -> Result<(), TestCaseError> {
        let Kernel { told, now, seen, .. } = &self.kernel;
        let refuses = |verdict| verdict == Verdict::Deny;
        for (at, Seen { maps, answers, shared: noted }) in seen.iter().enumerate() {
            // The new rules know as shared only what they leave alone.
            let left = |shared| still_shared(new, &told[..*answers], shared, *now);
            let mut sides = [
                (&self.rules[..], vec![shared.to_vec(), noted.clone()]),
                (new, vec![left(shared), left(noted)]),
            ];
            // Where the default refuses, a shared address is refused by it, and an audit may come before it is known that the
            // address is not shared any more (README, "What it does not do yet").
            if maps.default_deny {
                sides[0].1.push(left(noted));
                sides[1].1.push(noted.clone());
            }
            for (last, connect) in ADDRESSES.flat_map(|last| connects().map(move |connect| (last, connect))) {
                // An answer that comes meanwhile counts by and by.
                let mut versions = sides.iter().flat_map(|(rules, shared)| {
                    let known = [known, *answers]
                        .into_iter()
                        .flat_map(|count| shared.iter().map(move |one| (count, one)));
                    known.map(|(count, shared)| {
                        refuses(self.wanted(rules, (&told[..count], shared), (last, connect)))
                    })
                });
                let got = refuses(maps.decide(addr(last), connect, *now));
                prop_assert!(
                    versions.any(|version| version == got),
                    "step {at}: {last} {connect:?} refused: {got}\n{:?}\n{new:?}\n{:?}",
                    self.rules,
                    &told[..*answers]
                );
            }
        }
        Ok(())
    }

    fn reload(&mut self, new: Vec<Rule>, under_way: Vec<(usize, Answered)>) -> Result<(), TestCaseError> {
        let text: String = new.iter().enumerate().map(|(name, rule)| rule.write(name)).collect();
        let source = Source { path: "p.toml".into(), bytes: text.into_bytes() };
        let set = policy::parse(&[source]).unwrap().set;
        let Self { state, kernel, .. } = self;
        let beside = Beside { conditions: kernel.conditions().clone(), ..Beside::default() };
        let lists = Lists::default();
        let budget = if kernel.late { Budget::NOTHING } else { Budget::default() };
        let compiled = Compiled::with_budget(&set, &lists, [1, 2], &beside, budget).unwrap();
        let (known, shared) = (kernel.told.len(), kernel.shared.clone());
        (kernel.steps, kernel.under_way) = (0, under_way);
        kernel.next = Some((compiled.clone(), new.clone()));
        kernel.seen.clear();
        let now = kernel.now;
        prop_assert_eq!(reload::begin(state, kernel, compiled, now), Begun::InForce);
        self.drain();
        let Self { state, kernel, .. } = self;
        reload::hold(state, kernel, now);
        let retired: Vec<Addr> = kernel.maps.answered[0].keys().copied().collect();
        for addr in retired {
            kernel.maps.answered[0].remove(&addr);
            kernel.stepped();
        }
        prop_assert!(reload::conclude(state, kernel, now));
        // Those that were to come later come now.
        kernel.steps = STEPS;
        kernel.stepped();
        self.check_both(&new, known, &shared)?;
        self.drain();
        self.rules = new;
        Ok(())
    }

    /// The daemon takes over what the packet path reported.
    fn drain(&mut self) {
        self.kernel.read = self.kernel.told.len();
        for (record, payload) in std::mem::take(&mut self.kernel.ring) {
            let steps = self.state.answer(&record, &payload);
            self.kernel.addresses(steps, &mut self.state);
        }
    }

    fn pass(&mut self, seconds: u64) {
        // As from time to time: there conditional rules share one expiry.
        self.kernel.maps.answered[1].clear();
        self.kernel.now += seconds * SECOND;
        let steps = self.state.tick(self.kernel.now);
        self.kernel.addresses(steps, &mut self.state);
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// And after how many steps which answers come.
    Rules(Vec<Rule>, Vec<(usize, Answered)>),
    Answer(Answered),
    Pass(u64),
}

fn rule() -> impl Strategy<Value = Rule> {
    let action = prop::sample::select(vec![Verdict::Allow, Verdict::Deny, Verdict::Audit]);
    let hosts = prop::collection::btree_set(0..PATTERNS.len(), 1..3);
    let networks = prop_oneof![2 => Just(Vec::new()), 1 => prop::sample::subsequence((0..NETWORKS.len()).collect::<Vec<_>>(), 1..=2)];
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

fn answered() -> impl Strategy<Value = Answered> {
    let chain = prop::sample::subsequence(NAMES.to_vec(), 1..=3).prop_shuffle();
    (chain, prop::collection::vec((ADDRESSES, 0u32..150), 1..4))
}

fn op() -> impl Strategy<Value = Op> {
    let under_way = prop::collection::vec((0..STEPS, answered()), 0..3);
    prop_oneof![
        2 => (prop::collection::vec(rule(), 0..5), under_way).prop_map(|(rules, come)| Op::Rules(rules, come)),
        3 => answered().prop_map(Op::Answer),
        1 => (0u64..60).prop_map(Op::Pass),
    ]
}

proptest! {
    #[test]
    fn the_kernel_decides_as_the_rules_of_now_say_of_the_answers_of_now(
        default_deny: bool, late: bool, ops in prop::collection::vec(op(), 1..16),
    ) {
        let mut host = Host::new(default_deny, late);
        host.reload(Vec::new(), Vec::new())?;
        for op in ops {
            match op {
                Op::Rules(rules, under_way) => host.reload(rules, under_way)?,
                Op::Answer((chain, addresses)) => {
                    host.kernel.answer(&chain, &addresses);
                    host.drain();
                }
                Op::Pass(seconds) => host.pass(seconds),
            }
            host.check()?;
        }
    }
}
