//! The engine and the packet program together, on real maps: whatever was edited, answered and has run out, what the maps
//! decide is what the rules of now say of the answers of now. `enforcer/src/engine/whole.rs` tries the engine alone, by
//! the same model and after each single step.

use std::collections::{BTreeMap, HashSet};
use std::thread::sleep;
use std::time::Duration;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData};
use enforcer::engine::compile::{Beside, Change, Compiled, Network, changes};
use enforcer::engine::conditions::Table;
use enforcer::engine::dns::table::TableConfig;
use enforcer::engine::plan::Step;
use enforcer::engine::policy::{self, Lists, Source};
use enforcer::engine::reload::{self, Begun, Kernel as _};
use enforcer::engine::state::{NeverDeny, State};
use enforcer::engine::tables::{Budget, Tables};
use enforcer::sys::clock::boot_ns;
use enforcer_common::event::AnswerRecord;
use enforcer_common::kernel::{Offsets, Settings};
use enforcer_common::quota::Quotas;
use enforcer_common::verdict::BootNanos;
use enforcer_common::{Addr, Entry, Verdict};

use crate::message::{Carrier, Random};
use crate::model::{
    ADDRESSES, Answered, NAMES, NETWORKS, NEVER, PATTERNS, Rule, SECOND, Shared, TCP, Told, UDP, addr,
    connects, decide, message, shared_by, still_shared, wanted,
};
use crate::subject::{Raw, Subject};

/// So short that much runs out meanwhile.
const FLOOR: u32 = 1;
const CAP: u32 = 2;

/// The kernel, as the daemon's installer has it; and while rules change answers come.
struct Kernel {
    subject: Subject,
    addresses: HashMap<MapData, [u8; 16], Raw<Entry>>,
    trie: LpmTrie<MapData, [u8; 16], Raw<Entry>>,
    /// What stands in the trie.
    networks: BTreeMap<Network, Entry>,
    /// What the packet path matches with, and will.
    matching: Vec<Rule>,
    next: Vec<Rule>,
    random: Random,
    told: Vec<Told>,
    /// So many were taken over.
    read: usize,
    shared: Vec<Shared>,
    /// When the rules before the last ones went.
    now: BootNanos,
    /// Reported, and not taken over yet.
    ring: Vec<(AnswerRecord, Vec<u8>)>,
    reloads: bool,
}

impl Kernel {
    fn answer(&mut self) {
        let (chain, addresses) = some_answer(&mut self.random);
        let frame = Carrier::Udp4.frame(&message(&chain, &addresses));
        let (record, payload) = self.subject.told_of(&frame);
        self.shared.extend(shared_by(&self.matching, (&chain, &addresses), CAP, false, record.time));
        for (last, ttl) in addresses {
            let until = record.time + BootNanos::from(ttl.clamp(FLOOR, CAP)) * SECOND;
            self.told.push(Told { chain: chain.clone(), last, until });
        }
        self.ring.push((record, payload));
    }

    fn maybe_answer(&mut self) {
        if self.reloads && self.random.one_in(8) {
            self.answer();
        }
    }

    /// What a connect finds about a destination.
    fn entries(&self, addr: Addr) -> Vec<Entry> {
        let known = self.addresses.get(&addr.octets(), 0).ok();
        let around = self.trie.get(&Key::new(128, addr.octets()), 0).ok();
        let answered = self.subject.answers.about(addr).unwrap();
        known.into_iter().chain(around).map(|Raw(entry)| entry).chain(answered).collect()
    }
}

impl reload::Kernel for Kernel {
    fn addresses(&mut self, steps: Vec<Step>, _: &mut State) {
        for step in steps {
            match step {
                Step::Put(addr, entry) => self.addresses.insert(addr.octets(), Raw(entry), 0).unwrap(),
                Step::Remove(addr) => drop(self.addresses.remove(&addr.octets())),
            }
        }
        self.maybe_answer();
    }

    fn networks(&self) -> &BTreeMap<Network, Entry> {
        &self.networks
    }

    fn set_networks(&mut self, wanted: &BTreeMap<Network, Entry>) {
        let key = |network: Network| Key::new(network.prefix.into(), network.addr);
        for change in changes(&self.networks, wanted) {
            match change {
                Change::Put(network, entry) => self.trie.insert(&key(network), Raw(entry), 0).unwrap(),
                Change::Remove(network) => self.trie.remove(&key(network)).unwrap(),
            }
        }
        self.networks.clone_from(wanted);
        self.maybe_answer();
    }

    fn conditions(&self) -> &Table {
        self.subject.conditions.in_force()
    }

    fn enforce(&mut self, conditions: &Table) -> bool {
        self.subject.conditions.enforce(conditions).unwrap();
        self.maybe_answer();
        true
    }

    fn install(&mut self, tables: &Tables) -> bool {
        self.subject.answers.install(tables).unwrap();
        self.matching = std::mem::take(&mut self.next);
        self.maybe_answer();
        true
    }

    fn retired(&self) -> Vec<(Addr, Entry)> {
        self.subject.answers.retired().unwrap()
    }

    fn review_shared(&mut self, is_shared: impl Fn(Addr) -> bool) {
        for (addr, _) in self.subject.answers.shared().unwrap() {
            if !is_shared(addr) {
                self.subject.answers.forget_shared(addr).unwrap();
            }
        }
        self.shared = still_shared(&self.matching, &self.told[..self.read], &self.shared, self.now);
        self.maybe_answer();
    }
}

#[derive(Debug, Default)]
struct Counts {
    edits: usize,
    answers: usize,
    verdicts: BTreeMap<&'static str, usize>,
}

struct Host {
    state: State,
    kernel: Kernel,
    rules: Vec<Rule>,
    default_deny: bool,
    /// Answers before this one are not in the packet path's maps any more.
    since: usize,
    counts: Counts,
    seed: u64,
}

/// For so long with each default.
pub(crate) fn sequences(seconds: u64, seed: u64) {
    for default_deny in [false, true] {
        let end = boot_ns() + seconds * SECOND;
        let mut host = Host::new(default_deny, seed);
        host.reload(Vec::new());
        while boot_ns() < end {
            host.act();
        }
        let Counts { edits, answers, verdicts } = &host.counts;
        let now = boot_ns();
        let ran_out = host.kernel.told.iter().filter(|told| told.until <= now).count();
        println!(
            "packet: default deny {default_deny}: {edits} edits, {answers} answers, {ran_out} ran out: {verdicts:?} as they should be"
        );
        assert!(*edits > 1 && *answers > 1 && ran_out > 0, "too little was tried");
    }
}

impl Host {
    fn new(default_deny: bool, seed: u64) -> Self {
        let settings = Settings { ttl_floor: FLOOR, ttl_cap: CAP, one_socket: 1, ..Settings::default() };
        let mut subject =
            Subject::with(if default_deny { "-closed" } else { "-open" }, settings, Offsets::default());
        let never = NeverDeny { host: HashSet::from([addr(NEVER)]), ..NeverDeny::default() };
        subject.answers.set_host(&never.host).unwrap();
        let addresses = HashMap::try_from(subject.take_map("ADDRESSES")).unwrap();
        let trie = LpmTrie::try_from(subject.take_map("NETWORKS")).unwrap();
        let table = TableConfig { ttl_floor: FLOOR, ttl_cap: CAP, capacity: 10_000 };
        let kernel = Kernel {
            subject,
            addresses,
            trie,
            networks: BTreeMap::new(),
            matching: Vec::new(),
            next: Vec::new(),
            random: Random(seed),
            told: Vec::new(),
            read: 0,
            shared: Vec::new(),
            now: 0,
            ring: Vec::new(),
            reloads: false,
        };
        Self {
            state: State::new(table, never, Quotas::NONE, default_deny),
            kernel,
            rules: Vec::new(),
            default_deny,
            since: 0,
            counts: Counts::default(),
            seed,
        }
    }

    fn act(&mut self) {
        match self.kernel.random.below(48) {
            0..12 => {
                let rules = some_rules(&mut self.kernel.random);
                self.reload(rules);
                self.counts.edits += 1;
            }
            12..26 => {
                self.kernel.answer();
                self.counts.answers += 1;
            }
            26..34 => self.drain(),
            34..46 => self.rotate(),
            _ => {
                let now = boot_ns();
                let next = self.kernel.told.iter().map(|told| told.until).filter(|until| now < *until).min();
                let Some(next) = next else { return };
                while boot_ns() < next {
                    sleep(Duration::from_millis(5));
                }
            }
        }
        self.check();
    }

    /// As the daemon does it.
    fn reload(&mut self, rules: Vec<Rule>) {
        let text: String = rules.iter().enumerate().map(|(name, rule)| rule.write(name)).collect();
        let source = Source { path: "p.toml".into(), bytes: text.into_bytes() };
        let set = policy::parse(&[source]).unwrap().set;
        let beside = Beside { conditions: self.kernel.conditions().clone(), ..Beside::default() };
        let compiled =
            Compiled::with_budget(&set, &Lists::default(), [1, 2], &beside, Budget::default()).unwrap();
        assert!(compiled.tables().late.is_empty());
        let since = self.kernel.told.len();
        self.kernel.reloads = true;
        self.kernel.next.clone_from(&rules);
        let begun = reload::begin(&mut self.state, &mut self.kernel, compiled, boot_ns());
        assert_eq!(begun, Begun::InForce);
        self.drain();
        reload::hold(&mut self.state, &mut self.kernel, boot_ns());
        self.kernel.subject.answers.discard_retired().unwrap();
        // By the same clock.
        let now = boot_ns();
        self.kernel.now = now;
        assert!(reload::conclude(&mut self.state, &mut self.kernel, now));
        self.kernel.reloads = false;
        (self.rules, self.since) = (rules, since);
    }

    fn rotate(&mut self) {
        self.since = self.kernel.told.len();
        self.kernel.subject.answers.rotate().unwrap();
        self.drain();
        self.kernel.subject.answers.discard_retired().unwrap();
    }

    /// The daemon takes over what the packet path reported.
    fn drain(&mut self) {
        self.kernel.read = self.kernel.told.len();
        for (record, payload) in std::mem::take(&mut self.kernel.ring) {
            let steps = self.state.answer(&record, &payload);
            self.kernel.addresses(steps, &mut self.state);
        }
    }

    fn check(&mut self) {
        let now = boot_ns();
        let steps = self.state.tick(now);
        self.kernel.addresses(steps, &mut self.state);
        let table = self.kernel.subject.pinned_conditions();
        let noted = self.kernel.subject.answers.shared().unwrap();
        let Kernel { told, shared, .. } = &self.kernel;
        for last in ADDRESSES {
            // What the packet path enters of conditional rules runs out with the last of them.
            let blurred = |told: &Told| told.last == last && told.until <= now;
            if told[self.since..].iter().any(blurred) {
                continue;
            }
            let entries = self.kernel.entries(addr(last));
            let is_shared = noted.iter().any(|(known, until)| *known == addr(last) && now < *until);
            for connect in connects() {
                let got = decide(&entries, is_shared, &table, connect, self.default_deny, now);
                let want = wanted(&self.rules, (told, shared), (last, connect), self.default_deny, now);
                let Self { seed, rules, default_deny, .. } = self;
                assert_eq!(
                    got, want,
                    "seed {seed}, default deny: {default_deny}: {last} {connect:?} by {rules:?} after {told:?}: {entries:?}"
                );
                let name = match got {
                    Verdict::Allow => "allow",
                    Verdict::Deny => "deny",
                    Verdict::Audit => "audit",
                };
                *self.counts.verdicts.entry(name).or_default() += 1;
            }
        }
    }
}

/// Few enough alive at a time that each matters.
fn some_answer(random: &mut Random) -> Answered {
    let mut chain: Vec<&str> = Vec::new();
    for _ in 0..=random.below(2) {
        let name = *random.pick(&NAMES);
        if !chain.contains(&name) {
            chain.push(name);
        }
    }
    let last =
        |random: &mut Random| ADDRESSES.start() + u8::try_from(random.below(ADDRESSES.count())).unwrap();
    let addresses = (0..=random.below(2)).map(|_| (last(random), u32::try_from(random.below(4)).unwrap()));
    (chain, addresses.collect())
}

fn some_rules(random: &mut Random) -> Vec<Rule> {
    let some = |random: &mut Random, of: usize, chance: usize| -> Vec<usize> {
        (0..of).filter(|_| random.one_in(chance)).collect()
    };
    let rule = |random: &mut Random| {
        let mut hosts = some(random, PATTERNS.len(), 3);
        if hosts.is_empty() {
            hosts.push(random.below(PATTERNS.len()));
        }
        let action = *random.pick(&[Verdict::Allow, Verdict::Deny, Verdict::Audit]);
        let networks = some(random, NETWORKS.len(), 6);
        Rule {
            unshared: action != Verdict::Allow && networks.is_empty() && random.one_in(2),
            action,
            hosts,
            networks,
            port: random.one_in(2).then(|| *random.pick(&[80, 443])),
            protocol: random.one_in(3).then(|| *random.pick(&[TCP, UDP])),
            user: random.one_in(3).then(|| *random.pick(&[0, 1000])),
        }
    };
    (0..=random.below(4)).map(|_| rule(random)).collect()
}
