//! What DNS answers taught us: which names lead to which addresses, and for how long that is believed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use enforcer_common::Addr;
use enforcer_common::belief::Sender;
use enforcer_common::verdict::BootNanos;

use super::wire::Answer;
use crate::engine::name::Name;
use crate::engine::record::Asker;

/// Bindings of one address. Full: the one that runs out first makes room. Otherwise a name with a wildcard
/// record, asked for in a million spellings, makes every look at its address expensive.
pub const PER_ADDRESS: usize = 256;

/// Memory for names, a binding on average. Used up: as if the table were full. Otherwise chains of 17 names
/// of 255 bytes each would take gigabytes before the count of bindings stops them.
pub const NAME_BYTES_PER_BINDING: usize = 256;

/// Processes that are remembered to have asked for one binding. More: who asked last longest ago is forgotten.
pub const SENDERS: usize = 8;

const SECOND: BootNanos = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableConfig {
    /// Seconds. An answer is believed for at least this long: applications keep addresses longer than the TTL.
    pub ttl_floor: u32,
    /// Seconds. And for at most this long; the cap wins over the floor.
    pub ttl_cap: u32,
    /// Bindings. Full: the one that runs out first makes room.
    pub capacity: usize,
}

/// One way from an asked name to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The asked name, then its aliases in order. Never empty.
    pub chain: Arc<[Name]>,
    pub addr: Addr,
    /// Believed while `now < until`.
    pub until: BootNanos,
    /// Last answer.
    pub seen: BootNanos,
    /// Who sent it; `None`: not known.
    pub server: Option<Addr>,
    /// When its TTL runs out, whatever we believe.
    pub ttl_until: BootNanos,
    /// Who asked, each process once, who asked last last.
    senders: Vec<Sender>,
}

impl Binding {
    fn asked(&mut self, by: Sender) {
        if by == Sender::NONE {
            return;
        }
        self.senders.retain(|sender| sender.process != by.process);
        if self.senders.len() >= SENDERS {
            self.senders.remove(0);
        }
        // There are many bindings, and most have one.
        self.senders.reserve_exact(1);
        self.senders.push(by);
    }

    /// Who asked, seen from `who`: the nearest.
    fn asked_by(&self, who: Sender) -> Option<Asker> {
        let asked = |by: &Sender| {
            if by.process == who.process {
                Asker::Process
            } else if by.cgroup == who.cgroup {
                Asker::Cgroup
            } else {
                Asker::Host
            }
        };
        if who == Sender::NONE { None } else { self.senders.iter().map(asked).min() }
    }
}

/// Who answered whom.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    pub server: Addr,
    pub sender: Sender,
}

/// A name that led to an address, and the binding that says so.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub name: &'a Name,
    /// In the question, not a target on the way.
    pub asked: bool,
    pub binding: &'a Binding,
    /// Whichever binding has the name.
    pub asked_by: Option<Asker>,
}

/// Bindings by address and by expiry.
#[derive(Debug)]
pub struct Table {
    config: TableConfig,
    bindings: HashMap<Id, Binding>,
    /// The binding that was seen last stands last.
    by_addr: HashMap<Addr, Vec<Id>>,
    by_until: BTreeSet<(BootNanos, Id)>,
    next_id: Id,
    name_bytes: usize,
    /// Bindings that made room for others before they ran out.
    pub evicted: u64,
}

type Id = u64;

impl Table {
    pub fn new(config: TableConfig) -> Self {
        Self {
            config,
            bindings: HashMap::new(),
            by_addr: HashMap::new(),
            by_until: BTreeSet::new(),
            next_id: 0,
            name_bytes: 0,
            evicted: 0,
        }
    }

    /// Takes an answer. Gives the addresses whose bindings changed, those that had to make room included:
    /// plan them before the next answer is taken, so that what they claimed is not forgotten.
    pub fn observe(&mut self, answer: &Answer, exchange: Option<Exchange>, now: BootNanos) -> Vec<Addr> {
        let server = exchange.map(|exchange| exchange.server);
        let sender = exchange.map_or(Sender::NONE, |exchange| exchange.sender);
        let mut fresh: BTreeMap<Addr, u32> = BTreeMap::new();
        for (addr, ttl) in &answer.addresses {
            let longest = fresh.entry(*addr).or_default();
            *longest = (*longest).max(*ttl);
        }
        let mut chain = None;
        let mut changed = BTreeSet::new();
        let ttl_until = |ttl: u32| now.saturating_add(BootNanos::from(ttl) * SECOND);
        fresh.retain(|addr, ttl| {
            let Some(id) = self.find(*addr, &answer.chain) else { return true };
            chain = self.bindings.get(&id).map(|binding| binding.chain.clone());
            if let Some(binding) = self.bindings.get_mut(&id) {
                (binding.server, binding.ttl_until) = (server, ttl_until(*ttl));
                binding.asked(sender);
            }
            if self.refresh(id, self.until(*ttl, now), now) {
                changed.insert(*addr);
            }
            false
        });
        if !fresh.is_empty() {
            let chain: Arc<[Name]> = chain.unwrap_or_else(|| answer.chain.as_slice().into());
            changed.extend(self.make_room(fresh.len(), cost(&chain)));
            changed.extend(fresh.keys());
            for (addr, ttl) in fresh {
                let (until, ttl_until) = (self.until(ttl, now), ttl_until(ttl));
                let (chain, senders) = (chain.clone(), Vec::new());
                let mut binding = Binding { chain, addr, until, seen: now, server, ttl_until, senders };
                binding.asked(sender);
                self.insert(binding);
            }
        }
        changed.into_iter().collect()
    }

    /// A binding that a daemon before this one knew, which is believed no longer than an answer of now could be. It
    /// makes no room for itself. False: it was not taken.
    pub fn restore(&mut self, chain: &[Name], addr: Addr, until: BootNanos, now: BootNanos) -> bool {
        let until = until.min(self.until(u32::MAX, now));
        let budget = self.config.capacity.saturating_mul(NAME_BYTES_PER_BINDING);
        let full = self.bindings.len() >= self.config.capacity || self.name_bytes + cost(chain) > budget;
        if full || chain.is_empty() || until <= now || self.find(addr, chain).is_some() {
            return false;
        }
        // What its TTL was is not remembered: it counts as run out.
        let (chain, senders) = (chain.into(), Vec::new());
        self.insert(Binding { chain, addr, until, seen: now, server: None, ttl_until: now, senders });
        true
    }

    /// Every name that led to the address: the chain that was seen last comes first.
    pub fn names(&self, addr: Addr, now: BootNanos) -> Vec<Name> {
        self.origins(addr, Sender::NONE, now).iter().map(|origin| origin.name.clone()).collect()
    }

    /// The same, each with the binding that was seen last. `who`: from whom who asked is seen.
    pub fn origins(&self, addr: Addr, who: Sender, now: BootNanos) -> Vec<Origin<'_>> {
        let mut known: HashMap<&Name, usize> = HashMap::new();
        let mut origins: Vec<Origin<'_>> = Vec::new();
        for binding in self.bindings(addr).filter(|binding| now < binding.until) {
            let asked_by = binding.asked_by(who);
            for (place, name) in binding.chain.iter().enumerate() {
                match known.entry(name) {
                    Entry::Vacant(free) => {
                        free.insert(origins.len());
                        origins.push(Origin { name, asked: place == 0, binding, asked_by });
                    }
                    Entry::Occupied(at) => {
                        if let Some(origin) = origins.get_mut(*at.get()) {
                            origin.asked_by = origin.asked_by.into_iter().chain(asked_by).min();
                        }
                    }
                }
            }
        }
        origins
    }

    /// The bindings of an address, the one that was seen last first; also those that ran out since the last
    /// `expire`.
    pub fn bindings(&self, addr: Addr) -> impl Iterator<Item = &Binding> {
        let ids = self.by_addr.get(&addr).map(Vec::as_slice).unwrap_or_default();
        ids.iter().rev().filter_map(|id| self.bindings.get(id))
    }

    pub fn addresses(&self) -> impl Iterator<Item = Addr> {
        self.by_addr.keys().copied()
    }

    /// Forgets what ran out. Gives the addresses that lost a binding.
    pub fn expire(&mut self, now: BootNanos) -> Vec<Addr> {
        let mut changed = BTreeSet::new();
        while let Some((until, id)) = self.by_until.first().copied()
            && until <= now
        {
            changed.extend(self.remove(id));
        }
        changed.into_iter().collect()
    }

    /// Bindings.
    pub fn len(&self) -> usize {
        self.bindings.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
    }

    fn until(&self, ttl: u32, now: BootNanos) -> BootNanos {
        let seconds = ttl.max(self.config.ttl_floor).min(self.config.ttl_cap);
        now.saturating_add(BootNanos::from(seconds) * SECOND)
    }

    fn find(&self, addr: Addr, chain: &[Name]) -> Option<Id> {
        let is_it = |id: &&Id| self.bindings.get(*id).is_some_and(|binding| *binding.chain == *chain);
        self.by_addr.get(&addr)?.iter().rev().find(is_it).copied()
    }

    /// True if the binding lives longer now. It never lives shorter: the application may still use the
    /// longer-lived answer.
    fn refresh(&mut self, id: Id, until: BootNanos, now: BootNanos) -> bool {
        let Some(binding) = self.bindings.get_mut(&id) else { return false };
        binding.seen = now;
        if let Some(ids) = self.by_addr.get_mut(&binding.addr)
            && let Some(at) = ids.iter().position(|other| *other == id)
        {
            ids[at..].rotate_left(1);
        }
        if until <= binding.until {
            return false;
        }
        self.by_until.remove(&(binding.until, id));
        self.by_until.insert((until, id));
        binding.until = until;
        true
    }

    /// Room for all new bindings of one answer at once, so that they do not push each other out.
    fn make_room(&mut self, count: usize, cost: usize) -> Vec<Addr> {
        let budget = self.config.capacity.saturating_mul(NAME_BYTES_PER_BINDING);
        let mut changed = Vec::new();
        while self.bindings.len() + count > self.config.capacity || self.name_bytes + count * cost > budget {
            let Some((_, id)) = self.by_until.first().copied() else { break };
            changed.extend(self.remove(id));
            self.evicted += 1;
        }
        changed
    }

    fn insert(&mut self, binding: Binding) {
        let siblings = self.by_addr.get(&binding.addr).map(Vec::as_slice).unwrap_or_default();
        if siblings.len() >= PER_ADDRESS {
            let until = |id: &Id| self.bindings.get(id).map(|binding| binding.until);
            let first = siblings.iter().copied().min_by_key(until);
            first.and_then(|id| self.remove(id));
            self.evicted += 1;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.name_bytes += cost(&binding.chain);
        self.by_addr.entry(binding.addr).or_default().push(id);
        self.by_until.insert((binding.until, id));
        self.bindings.insert(id, binding);
    }

    fn remove(&mut self, id: Id) -> Option<Addr> {
        let binding = self.bindings.remove(&id)?;
        self.by_until.remove(&(binding.until, id));
        self.name_bytes -= cost(&binding.chain);
        if let Some(ids) = self.by_addr.get_mut(&binding.addr) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_addr.remove(&binding.addr);
            }
        }
        Some(binding.addr)
    }
}

/// Memory of a chain, charged to every binding that shares it: too much rather than too little.
fn cost(chain: &[Name]) -> usize {
    chain.iter().map(|name| name.as_str().len() + 2 * size_of::<Name>()).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: TableConfig = TableConfig { ttl_floor: 10, ttl_cap: 100, capacity: 1000 };

    fn answer(chain: &[&str], addresses: &[(u8, u32)]) -> Answer {
        let chain: Vec<_> = chain.iter().map(|name| Name::from_text(name).unwrap()).collect();
        Answer {
            id: 0,
            question: chain[0].clone(),
            qtype: 1,
            truncated: false,
            rcode: 0,
            chain,
            chain_cut: false,
            addresses: addresses.iter().map(|(last, ttl)| (addr(*last), *ttl)).collect(),
        }
    }

    fn addr(last: u8) -> Addr {
        Addr::from_v4([192, 0, 2, last])
    }

    fn names(table: &Table, last: u8, now: BootNanos) -> Vec<String> {
        table.names(addr(last), now).iter().map(Name::to_string).collect()
    }

    #[test]
    fn what_is_restored_never_outlives_an_answer_of_now_nor_pushes_another_out() {
        let mut table = Table::new(TableConfig { capacity: 2, ..CONFIG });
        let chain = |name| [Name::from_text(name).unwrap()];
        let addr = |last| Addr::from_v6([last; 16]);
        let now = 5 * SECOND;
        assert!(!table.restore(&chain("over.example"), addr(1), now, now));
        assert!(!table.restore(&[], addr(1), now + SECOND, now));
        assert!(table.restore(&chain("long.example"), addr(1), BootNanos::MAX, now));
        assert!(!table.restore(&chain("long.example"), addr(1), BootNanos::MAX, now));
        assert_eq!(table.bindings(addr(1)).next().unwrap().until, now + 100 * SECOND);
        assert!(table.restore(&chain("b.example"), addr(2), now + SECOND, now));
        assert!(!table.restore(&chain("c.example"), addr(3), now + SECOND, now));
        assert_eq!((table.len(), table.evicted), (2, 0));
        assert_eq!(table.expire(now + SECOND), [addr(2)]);
    }

    #[test]
    fn ttl_rows() {
        for (ttl, want) in [(0, 10), (10, 10), (11, 11), (100, 100), (101, 100), (u32::MAX, 100)] {
            let mut table = Table::new(CONFIG);
            table.observe(&answer(&["a"], &[(1, ttl)]), None, 7);
            assert_eq!(table.bindings(addr(1)).next().unwrap().until, 7 + want * SECOND, "{ttl}");
        }
        let mut table = Table::new(TableConfig { ttl_floor: 50, ttl_cap: 20, ..CONFIG });
        table.observe(&answer(&["a"], &[(1, 30)]), None, BootNanos::MAX - 1);
        assert_eq!(table.bindings(addr(1)).next().unwrap().until, BootNanos::MAX);
    }

    #[test]
    fn the_chain_seen_last_comes_first_and_no_name_twice() {
        let mut table = Table::new(CONFIG);
        table.observe(&answer(&["a", "cdn"], &[(1, 20)]), None, 0);
        table.observe(&answer(&["b", "cdn"], &[(1, 50)]), None, 1);
        assert_eq!(names(&table, 1, 2), ["b", "cdn", "a"]);
        table.observe(&answer(&["a", "cdn"], &[(1, 20)]), None, 3);
        assert_eq!(names(&table, 1, 4), ["a", "cdn", "b"]);
        assert_eq!(table.len(), 2);
        assert_eq!(names(&table, 1, 30 * SECOND), ["b", "cdn"]);
        assert_eq!(names(&table, 1, 51 * SECOND + 1), Vec::<String>::new());
        assert_eq!(names(&table, 2, 0), Vec::<String>::new());
    }

    #[test]
    fn a_repeated_answer_extends_and_never_shortens() {
        let mut table = Table::new(CONFIG);
        assert_eq!(table.observe(&answer(&["a"], &[(1, 50), (2, 50), (1, 60)]), None, 0), [addr(1), addr(2)]);
        assert_eq!(table.observe(&answer(&["a"], &[(1, 60)]), None, 0), []);
        assert_eq!(table.observe(&answer(&["a"], &[(1, 20), (2, 60)]), None, SECOND), [addr(2)]);
        assert_eq!(table.expire(60 * SECOND), [addr(1)]);
        assert_eq!(table.expire(61 * SECOND), [addr(2)]);
        assert!(table.is_empty() && table.addresses().next().is_none());
    }

    #[test]
    fn a_new_chain_or_address_keeps_the_old_ones() {
        let mut table = Table::new(CONFIG);
        table.observe(&answer(&["a", "x"], &[(1, 20)]), None, 0);
        table.observe(&answer(&["a", "y"], &[(1, 50), (2, 50)]), None, 1);
        assert_eq!(table.len(), 3);
        assert_eq!(table.expire(20 * SECOND), [addr(1)]);
        assert_eq!(names(&table, 1, 20 * SECOND), ["a", "y"]);
    }

    #[test]
    fn one_answer_shares_its_chain() {
        let mut table = Table::new(CONFIG);
        table.observe(&answer(&["a"], &[(1, 20), (2, 20)]), None, 0);
        table.observe(&answer(&["a"], &[(2, 20), (3, 20)]), None, 0);
        let first = table.bindings(addr(1)).next().unwrap();
        assert!(Arc::ptr_eq(&first.chain, &table.bindings(addr(3)).next().unwrap().chain));
    }

    #[test]
    fn the_first_to_run_out_makes_room_but_not_for_its_own_answer() {
        let mut table = Table::new(TableConfig { capacity: 3, ..CONFIG });
        table.observe(&answer(&["a"], &[(1, 90), (2, 80), (3, 70)]), None, 0);
        let changed = table.observe(&answer(&["b"], &[(4, 10), (5, 10)]), None, 0);
        assert_eq!(changed, [2, 3, 4, 5].map(addr));
        assert_eq!((table.len(), table.evicted), (3, 2));
        assert_eq!(table.addresses().collect::<BTreeSet<_>>(), [1, 4, 5].map(addr).into());
    }

    fn by(process: u64, cgroup: u64) -> Sender {
        Sender { process, cgroup }
    }

    fn heard(table: &mut Table, chain: &[&str], sender: Sender, now: BootNanos) {
        table.observe(&answer(chain, &[(1, 90)]), Some(Exchange { server: addr(53), sender }), now);
    }

    fn askers(table: &Table, who: Sender) -> Vec<Option<Asker>> {
        table.origins(addr(1), who, 20).iter().map(|origin| origin.asked_by).collect()
    }

    #[test]
    fn who_asked_is_seen_from_who_connects() {
        let mut table = Table::new(CONFIG);
        table.restore(&[Name::from_text("a").unwrap()], addr(1), 90 * SECOND, 0);
        heard(&mut table, &["a"], Sender::NONE, 0);
        assert_eq!(askers(&table, by(1, 10)), [None], "nobody is known to have asked");
        heard(&mut table, &["a"], by(1, 10), 1);
        heard(&mut table, &["a"], by(2, 20), 2);
        let rows = [
            (by(1, 10), Some(Asker::Process)),
            (by(2, 99), Some(Asker::Process)), // moved since
            (by(3, 20), Some(Asker::Cgroup)),
            (by(4, 99), Some(Asker::Host)),
            (Sender::NONE, None),
        ];
        for (who, want) in rows {
            assert_eq!(askers(&table, who), [want], "{who:?}");
        }
        // Another way to the address, by another process: each name has its nearest, and those in both that of both.
        heard(&mut table, &["b", "a"], by(3, 20), 3);
        assert_eq!(names(&table, 1, 20), ["b", "a"]);
        assert_eq!(askers(&table, by(1, 10)), [Some(Asker::Host), Some(Asker::Process)]);
        assert_eq!(askers(&table, by(3, 20)), [Some(Asker::Process); 2]);
    }

    #[test]
    fn so_many_are_remembered_to_have_asked_and_each_once() {
        let mut table = Table::new(CONFIG);
        let last = 20 + SENDERS as u64;
        for process in (1..=last).flat_map(|process| [process, 1]) {
            heard(&mut table, &["a"], by(process, process), process);
        }
        let binding = table.bindings(addr(1)).next().unwrap();
        assert_eq!((binding.senders.len(), binding.senders.capacity()), (SENDERS, SENDERS));
        let known: Vec<_> =
            (1..=last).filter(|n| askers(&table, by(*n, 0)) == [Some(Asker::Process)]).collect();
        let want: Vec<_> = [1].into_iter().chain(last - SENDERS as u64 + 2..=last).collect();
        assert_eq!(known, want);
    }

    #[test]
    fn one_address_has_bounded_bindings() {
        let mut table = Table::new(CONFIG);
        for n in 0..PER_ADDRESS + 10 {
            table.observe(&answer(&[&format!("n{n}")], &[(1, 90)]), None, n as BootNanos);
        }
        assert_eq!((table.len(), table.evicted), (PER_ADDRESS, 10));
        assert_eq!(names(&table, 1, 300)[0], format!("n{}", PER_ADDRESS + 9));
        assert!(!names(&table, 1, 300).contains(&"n9".to_owned()));
    }

    #[test]
    fn names_have_a_budget() {
        let long = vec![format!("{0}.{0}.{0}", "x".repeat(63)); 1];
        let mut table = Table::new(TableConfig { capacity: 100, ..CONFIG });
        for n in 0..100 {
            let asked = format!("n{n}.{}", long[0]);
            table.observe(&answer(&[&asked, &asked.replace('x', "y")], &[(n, 90)]), None, BootNanos::from(n));
            assert!(table.name_bytes <= 100 * NAME_BYTES_PER_BINDING);
        }
        assert!(table.len() < 60 && table.evicted > 40);
        table.expire(BootNanos::MAX);
        assert_eq!(table.name_bytes, 0);
    }

    proptest! {
        /// Against a list of bindings that is searched from end to end.
        #[test]
        fn as_the_naive_table(
            ops in prop::collection::vec((0u8..6, prop::collection::vec((0u8..5, 0u32..120), 0..4), 0u64..9), 1..60),
        ) {
            let chains = [["a", "x"], ["b", "x"], ["a", "y"], ["c", "z"], ["z", "c"], ["b", "a"]];
            let mut table = Table::new(CONFIG);
            let mut naive: Vec<(usize, u8, BootNanos)> = Vec::new(); // the last seen last
            let mut now = 0;
            for (which, addresses, pause) in ops {
                now += pause * SECOND;
                let before = naive.clone();
                naive.retain(|(_, _, until)| now < *until);
                prop_assert_eq!(
                    table.expire(now).into_iter().collect::<BTreeSet<_>>(),
                    before.iter().filter(|b| b.2 <= now).map(|b| addr(b.1)).collect::<BTreeSet<_>>()
                );
                let which = usize::from(which);
                let mut longest = BTreeMap::new();
                for (last, ttl) in &addresses {
                    let until = now + BootNanos::from((*ttl).clamp(10, 100)) * SECOND;
                    longest.entry(*last).and_modify(|u: &mut u64| *u = until.max(*u)).or_insert(until);
                }
                let mut changed = Vec::new();
                for (last, until) in longest {
                    let old = naive.iter().position(|b| (b.0, b.1) == (which, last)).map(|at| naive.remove(at).2);
                    if old.is_none_or(|old| old < until) {
                        changed.push(addr(last));
                    }
                    naive.push((which, last, old.map_or(until, |old| old.max(until))));
                }
                prop_assert_eq!(table.observe(&answer(&chains[which], &addresses), None, now), changed);
                prop_assert_eq!(table.len(), naive.len());
                for last in 0..5 {
                    let mut want: Vec<String> = Vec::new();
                    for b in naive.iter().rev().filter(|b| b.1 == last) {
                        let new: Vec<_> = chains[b.0].iter().filter(|n| !want.contains(&n.to_string())).collect();
                        want.extend(new.into_iter().map(ToString::to_string));
                    }
                    prop_assert_eq!(names(&table, last, now), want);
                }
            }
        }
    }
}
