//! The map of addresses as it should be, and the steps that lead there.
//!
//! A claim on an address comes from a binding (a name that a rule names leads there), or is *carried*: adopted
//! from the previous daemon, or left by a binding that had to make room in the DNS table. Between two
//! `replan`s claims only grow or run out.
//!
//! The conditional rules of an entry share an expiry in the kernel; here each has its own, and is taken out of the
//! entry when it comes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use enforcer_common::limits::ADDRESSES;
use enforcer_common::verdict::{BootNanos, Conditional};
use enforcer_common::{Addr, Claim, Entry, RuleId, Seats};

use super::dns::table::Table;
use super::name::Name;
use super::reload::Part;

/// The rules, as far as the planner needs them.
pub trait Matcher {
    /// The claims of the rules that name any name of the chain.
    fn entry(&self, chain: &[Name], until: BootNanos) -> Entry;
    /// What this rule says about a destination that it names. Nothing, if it is not part of the policy.
    fn by_rule(&self, rule: RuleId, until: BootNanos) -> Entry;
    /// The conditional rule that has, or had before the last change of the policy, this seat.
    fn on_seat(&self, seat: u32) -> RuleId;
}

/// What a plan is made from.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub table: &'a Table,
    pub matcher: &'a dyn Matcher,
    /// Addresses that no answer may deny.
    pub never: &'a dyn Fn(Addr) -> bool,
    pub now: BootNanos,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("now", &self.now).finish_non_exhaustive()
    }
}

/// One change to the kernel's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Insert or replace.
    Put(Addr, Entry),
    /// The address may be absent already.
    Remove(Addr),
}

/// Knows what the kernel's map holds, and what it should hold.
#[derive(Debug)]
pub struct Planner {
    capacity: usize,
    installed: HashMap<Addr, Entry>,
    /// Of `installed`: when each conditional rule's turn is over.
    seated: HashMap<Addr, Sitting>,
    /// While a policy changes: what stays in entries, whatever the rules say.
    kept: Option<Kept>,
    /// Of `installed`, by the time at which there is something to do about the entry.
    by_until: BTreeSet<(BootNanos, Addr)>,
    /// Claims without a binding.
    carried: HashMap<Addr, Exact>,
    /// Addresses whose entry is not in the kernel as it should be.
    owed: BTreeMap<Addr, Owed>,
    /// Addresses in the never-deny set, with how many of their bindings deny or audit.
    refused: HashMap<Addr, usize>,
}

/// What of the rules before these stays in entries.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub seats: Seats,
    pub part: Part,
}

/// Seats and until when each is taken.
type Sitting = BTreeMap<u32, BootNanos>;

/// An entry before its conditional rules are given one expiry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Exact {
    /// Without the conditional rules.
    claims: Entry,
    sitting: Sitting,
}

impl Exact {
    fn add(&mut self, entry: &Entry) {
        let Conditional { until, rules } = entry.conditional;
        self.claims = self.claims.merge(Entry { conditional: Conditional::NONE, ..*entry });
        if !rules.is_none() {
            rules.iter().for_each(|seat| self.sit(seat, until));
        }
    }

    fn join(&mut self, other: &Self) {
        self.claims = self.claims.merge(other.claims);
        other.sitting.iter().for_each(|(seat, until)| self.sit(*seat, *until));
    }

    fn sit(&mut self, seat: u32, until: BootNanos) {
        let known = self.sitting.entry(seat).or_insert(until);
        *known = until.max(*known);
    }

    /// What holds.
    fn live(&self, now: BootNanos) -> Self {
        let alive = self.sitting.iter().filter(|(_, until)| now < **until);
        Self { claims: live(self.claims, now), sitting: alive.map(|(seat, until)| (*seat, *until)).collect() }
    }

    fn is_none(&self) -> bool {
        self.claims == Entry::NONE && self.sitting.is_empty()
    }

    /// When there is something to do about it: all claims have run out, or one conditional rule.
    fn next_until(&self) -> BootNanos {
        self.sitting.values().min().copied().unwrap_or_else(|| self.claims.last_until())
    }

    fn entry(&self) -> Entry {
        let mut rules = Seats::NONE;
        self.sitting.keys().for_each(|seat| rules.add(&Seats::one(*seat)));
        let until = self.sitting.values().max().copied().unwrap_or(0);
        Entry { conditional: Conditional::new(rules, until), ..self.claims }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    /// The map is full.
    Room,
    /// A step failed: what the kernel has is not known.
    Retry,
}

impl Default for Planner {
    fn default() -> Self {
        Self::new(usize::try_from(ADDRESSES).unwrap_or(usize::MAX))
    }
}

impl Planner {
    /// Full: an address that is not installed yet is not installed, and waits for room; nothing is evicted.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            installed: HashMap::new(),
            seated: HashMap::new(),
            kept: None,
            by_until: BTreeSet::new(),
            carried: HashMap::new(),
            owed: BTreeMap::new(),
            refused: HashMap::new(),
        }
    }

    /// An entry that the kernel's map has already. Its claims hold until they run out or their rule is gone.
    pub fn adopt(&mut self, addr: Addr, entry: Entry) {
        let mut exact = Exact::default();
        exact.add(&entry);
        self.carry(addr, entry);
        self.set(addr, Some(exact));
    }

    /// Claims that hold without a binding until they run out or their rule is gone. To be followed by `replan`.
    pub fn carry(&mut self, addr: Addr, claims: Entry) {
        if claims != Entry::NONE {
            self.carried.entry(addr).or_default().add(&claims);
        }
    }

    /// After an answer was taken or bindings ran out: the addresses that the table reported. The policy and
    /// the never-deny set must be those of the last `replan`.
    pub fn readdress(&mut self, addrs: impl IntoIterator<Item = Addr>, view: &View<'_>) -> Vec<Step> {
        let mut wanted = BTreeMap::new();
        for addr in addrs {
            let exact =
                self.wanted(addr, view).map(|exact| self.keep_what_lost_its_binding(addr, exact, view.now));
            wanted.insert(addr, exact.unwrap_or_default());
        }
        self.steps(wanted, view.now)
    }

    /// Before a change of the policy to that of `view`: every entry gets this part of it, and the seats of the new
    /// conditional rules, beside what it has. From here on what is to be kept stays in entries until `conclude`.
    pub fn prepare(&mut self, kept: Kept, given: Part, view: &View<'_>) -> Vec<Step> {
        self.kept = Some(kept);
        let mut wanted = BTreeMap::new();
        for addr in self.all(view) {
            let Some(new) = self.wanted(addr, view) else { continue };
            let more = Exact { claims: given.of(new.claims), sitting: new.sitting };
            if more.is_none() {
                continue;
            }
            let mut exact = self.exact(addr).live(view.now);
            exact.join(&more);
            wanted.insert(addr, exact);
        }
        self.steps(wanted, view.now)
    }

    /// While a policy changes: what the packet path entered by the rules before is kept as what is planned here is.
    pub fn hold(&mut self, entered: impl IntoIterator<Item = (Addr, Entry)>, view: &View<'_>) -> Vec<Step> {
        let Some(Kept { seats, part }) = self.kept else { return Vec::new() };
        let mut wanted = BTreeMap::new();
        for (addr, entry) in entered.into_iter().filter(|(addr, _)| !(view.never)(*addr)) {
            let Conditional { until, mut rules } = entry.conditional;
            rules.keep(&seats);
            let held = Entry { conditional: Conditional::new(rules, until), ..part.of(entry) };
            let mut exact = self.exact(addr).live(view.now);
            exact.add(&live(held, view.now));
            if !exact.is_none() {
                wanted.insert(addr, exact);
            }
        }
        self.steps(wanted, view.now)
    }

    /// While a policy changes: only the old exceptions and seats are still kept.
    pub fn relent(&mut self, view: &View<'_>) -> Vec<Step> {
        self.kept = self.kept.map(|kept| Kept { part: Part::Exceptions, ..kept });
        self.replan(view)
    }

    /// Nothing of the rules before these is in force any more.
    pub fn conclude(&mut self, view: &View<'_>) -> Vec<Step> {
        self.kept = None;
        self.replan(view)
    }

    /// After a start, or a change of the policy or the never-deny set: every address. All puts come before
    /// all removals, so that no moment denies less than the old and the new policy share.
    pub fn replan(&mut self, view: &View<'_>) -> Vec<Step> {
        self.carried.retain(|_, exact| {
            *exact = as_said_now(&exact.live(view.now), view.matcher);
            !exact.is_none()
        });
        self.refused.clear();
        let mut wanted = BTreeMap::new();
        for addr in self.all(view) {
            let exact = self.wanted(addr, view).map(|mut exact| {
                self.keep(addr, &mut exact, view.now);
                exact
            });
            wanted.insert(addr, exact.unwrap_or_default());
        }
        self.steps(wanted, view.now)
    }

    /// Every address that somebody knows.
    fn all(&self, view: &View<'_>) -> BTreeSet<Addr> {
        let all = view.table.addresses();
        let all = all.chain(self.installed.keys().copied()).chain(self.owed.keys().copied());
        all.chain(self.carried.keys().copied()).collect()
    }

    /// What is installed.
    fn exact(&self, addr: Addr) -> Exact {
        let claims = self.installed.get(&addr).copied().unwrap_or(Entry::NONE);
        let sitting = self.seated.get(&addr).cloned().unwrap_or_default();
        Exact { claims: Entry { conditional: Conditional::NONE, ..claims }, sitting }
    }

    /// Adds what stays.
    fn keep(&self, addr: Addr, exact: &mut Exact, now: BootNanos) {
        let Some(kept) = &self.kept else { return };
        let installed = self.exact(addr).live(now);
        exact.claims = exact.claims.merge(kept.part.of(installed.claims));
        let stay = installed.sitting.iter().filter(|(seat, _)| kept.seats.has(**seat));
        stay.for_each(|(seat, until)| exact.sit(*seat, *until));
    }

    /// From time to time: removes what ran out, tries again what failed or did not fit.
    pub fn tick(&mut self, view: &View<'_>) -> Vec<Step> {
        let mut room = self.capacity.saturating_sub(self.installed.len());
        let ran_out = self.by_until.iter().take_while(|(until, _)| *until <= view.now).map(|(_, addr)| *addr);
        let due = self.owed.iter().filter(|(_, owed)| match owed {
            Owed::Retry => true,
            Owed::Room if room == 0 => false,
            Owed::Room => {
                room -= 1;
                true
            }
        });
        let addrs: Vec<Addr> = ran_out.chain(due.map(|(addr, _)| *addr)).collect();
        self.readdress(addrs, view)
    }

    /// The kernel refused a step for this address; `tick` and `replan` try again.
    pub fn failed(&mut self, addr: Addr) {
        self.set(addr, None);
        self.owed.insert(addr, Owed::Retry);
    }

    /// What the kernel's map holds; claims that ran out may be among it.
    pub fn installed(&self) -> &HashMap<Addr, Entry> {
        &self.installed
    }

    /// Addresses that the kernel does not handle as they should be, for lack of room or because of an error.
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Addresses that are never denied although names say so, and how many bindings do.
    pub fn refused(&self) -> impl Iterator<Item = (Addr, usize)> {
        self.refused.iter().map(|(addr, bindings)| (*addr, *bindings))
    }

    fn steps(&mut self, wanted: BTreeMap<Addr, Exact>, now: BootNanos) -> Vec<Step> {
        let (removals, puts): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, exact)| exact.is_none());
        let mut steps: Vec<_> =
            puts.into_iter().filter_map(|(addr, exact)| self.put(addr, exact, now)).collect();
        steps.extend(removals.into_iter().filter_map(|(addr, _)| self.remove(addr)));
        steps
    }

    /// None for an address that is never denied.
    fn wanted(&mut self, addr: Addr, view: &View<'_>) -> Option<Exact> {
        let alive = view.table.bindings(addr).filter(|binding| view.now < binding.until);
        let claims = alive.map(|binding| view.matcher.entry(&binding.chain, binding.until));
        if !(view.never)(addr) {
            let mut exact = self.carried.get(&addr).map(|exact| exact.live(view.now)).unwrap_or_default();
            claims.for_each(|entry| exact.add(&entry));
            return Some(exact);
        }
        let refused = |entry: &Entry| {
            entry.deny != Claim::NONE || entry.audit != Claim::NONE || entry.conditional != Conditional::NONE
        };
        match claims.filter(refused).count() {
            0 => self.refused.remove(&addr),
            count => self.refused.insert(addr, count),
        };
        None
    }

    /// A claim that is installed and alive, but that nothing makes any more, was made by a binding that had
    /// to make room in the table: it is carried from now on.
    fn keep_what_lost_its_binding(&mut self, addr: Addr, mut wanted: Exact, now: BootNanos) -> Exact {
        if self.carried.get(&addr).is_some_and(|exact| exact.live(now).is_none()) {
            self.carried.remove(&addr);
        }
        self.keep(addr, &mut wanted, now);
        let installed = self.exact(addr).live(now);
        let beyond = |had: Claim, wanted: Claim| if had.until > wanted.until { had } else { Claim::NONE };
        let claims = Entry {
            allow: beyond(installed.claims.allow, wanted.claims.allow),
            deny: beyond(installed.claims.deny, wanted.claims.deny),
            audit: beyond(installed.claims.audit, wanted.claims.audit),
            conditional: Conditional::NONE,
        };
        let stands_up =
            |(seat, until): &(u32, BootNanos)| wanted.sitting.get(seat).is_none_or(|known| known < until);
        let left = Exact { claims, sitting: installed.sitting.into_iter().filter(stands_up).collect() };
        if !left.is_none() {
            wanted.join(&left);
            self.carried.entry(addr).or_default().join(&left);
        }
        wanted
    }

    fn put(&mut self, addr: Addr, exact: Exact, now: BootNanos) -> Option<Step> {
        let entry = exact.entry();
        match self.installed.get(&addr) {
            Some(had) if live(*had, now) == entry => {
                // The kernel has it, and maybe what ran out.
                self.by_until.remove(&(self.exact(addr).next_until(), addr));
                self.seat(addr, exact.sitting);
                self.by_until.insert((self.exact(addr).next_until(), addr));
                return None;
            }
            None if self.installed.len() >= self.capacity => {
                self.owed.entry(addr).or_insert(Owed::Room);
                return None;
            }
            _ => {}
        }
        self.owed.remove(&addr);
        self.set(addr, Some(exact));
        Some(Step::Put(addr, entry))
    }

    fn remove(&mut self, addr: Addr) -> Option<Step> {
        let had = self.set(addr, None);
        let unsure = self.owed.remove(&addr) == Some(Owed::Retry);
        (had.is_some() || unsure).then_some(Step::Remove(addr))
    }

    fn set(&mut self, addr: Addr, exact: Option<Exact>) -> Option<Entry> {
        if self.installed.contains_key(&addr) {
            self.by_until.remove(&(self.exact(addr).next_until(), addr));
        }
        let entry = exact.as_ref().map(Exact::entry);
        self.seat(addr, exact.map(|exact| exact.sitting).unwrap_or_default());
        let had = match entry {
            Some(entry) => self.installed.insert(addr, entry),
            None => self.installed.remove(&addr),
        };
        if entry.is_some() {
            self.by_until.insert((self.exact(addr).next_until(), addr));
        }
        had
    }

    fn seat(&mut self, addr: Addr, sitting: Sitting) {
        if sitting.is_empty() {
            self.seated.remove(&addr);
        } else {
            self.seated.insert(addr, sitting);
        }
    }
}

/// What was carried, as the rules that made it speak now: a rule can have got conditions, lost them, or changed its
/// action.
fn as_said_now(carried: &Exact, rules: &dyn Matcher) -> Exact {
    let mut exact = Exact::default();
    for claim in [carried.claims.allow, carried.claims.deny, carried.claims.audit] {
        if claim != Claim::NONE {
            exact.add(&rules.by_rule(claim.rule, claim.until));
        }
    }
    for (seat, until) in &carried.sitting {
        exact.add(&rules.by_rule(rules.on_seat(*seat), *until));
    }
    exact
}

/// The claims that hold.
fn live(entry: Entry, now: BootNanos) -> Entry {
    let claim = |claim: Claim| if claim.holds(now) { claim } else { Claim::NONE };
    Entry {
        allow: claim(entry.allow),
        deny: claim(entry.deny),
        audit: claim(entry.audit),
        conditional: if entry.conditional.holds(now) { entry.conditional } else { Conditional::NONE },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use enforcer_common::Verdict;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::dns::table::TableConfig;
    use crate::engine::dns::wire::Answer;

    const SECOND: BootNanos = 1_000_000_000;

    /// Rules: id, action, the one name it names.
    #[derive(Clone, Debug, Default)]
    struct Rules(Vec<(RuleId, Verdict, &'static str)>);

    impl Matcher for Rules {
        fn entry(&self, chain: &[Name], until: BootNanos) -> Entry {
            let matching = self.0.iter().filter(|(_, _, name)| chain.iter().any(|n| n.as_str() == *name));
            matching.fold(Entry::NONE, |entry, (id, action, _)| entry.merge(claim(*action, *id, until)))
        }

        fn by_rule(&self, rule: RuleId, until: BootNanos) -> Entry {
            let known = self.0.iter().filter(|(id, _, _)| *id == rule);
            known.fold(Entry::NONE, |entry, (id, action, _)| entry.merge(claim(*action, *id, until)))
        }

        fn on_seat(&self, seat: u32) -> RuleId {
            seat
        }
    }

    /// Rules from here on are conditional, and sit on the seat of their number.
    const CONDITIONAL: RuleId = 4;

    fn claim(action: Verdict, rule: RuleId, until: BootNanos) -> Entry {
        if rule >= CONDITIONAL {
            return Entry { conditional: Conditional::new(Seats::one(rule), until), ..Entry::NONE };
        }
        let claim = Claim::new(rule, until);
        match action {
            Verdict::Allow => Entry { allow: claim, ..Entry::NONE },
            Verdict::Deny => Entry { deny: claim, ..Entry::NONE },
            Verdict::Audit => Entry { audit: claim, ..Entry::NONE },
        }
    }

    fn deny(rule: RuleId, seconds: BootNanos) -> Entry {
        claim(Verdict::Deny, rule, seconds * SECOND)
    }

    fn addr(last: u8) -> Addr {
        Addr::from_v4([192, 0, 2, last])
    }

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

    /// A planner, what it plans from, and the kernel's map as the steps make it.
    struct Host {
        planner: Planner,
        table: Table,
        rules: Rules,
        never: Vec<Addr>,
        now: BootNanos,
        kernel: HashMap<Addr, Entry>,
    }

    impl Host {
        fn new(rules: &[(RuleId, Verdict, &'static str)], table: usize, map: usize) -> Self {
            Self {
                planner: Planner::new(map),
                table: Table::new(TableConfig { ttl_floor: 0, ttl_cap: 1000, capacity: table }),
                rules: Rules(rules.to_vec()),
                never: Vec::new(),
                now: 0,
                kernel: HashMap::new(),
            }
        }

        fn adopt(&mut self, last: u8, entry: Entry) {
            self.planner.adopt(addr(last), entry);
            self.kernel.insert(addr(last), entry);
        }

        fn run(&mut self, plan: impl FnOnce(&mut Planner, &View<'_>) -> Vec<Step>) -> Vec<Step> {
            let Self { planner, table, rules, never, now, kernel } = self;
            let never = |addr| never.contains(&addr);
            let steps = plan(planner, &View { table, matcher: rules, never: &never, now: *now });
            assert!(steps.is_sorted_by_key(|step| matches!(step, Step::Remove(_))), "{steps:?}");
            for step in &steps {
                match *step {
                    Step::Put(addr, entry) => {
                        assert_ne!(kernel.insert(addr, entry), Some(entry), "written twice");
                        assert_eq!(live(entry, *now), entry);
                    }
                    Step::Remove(addr) => assert!(kernel.remove(&addr).is_some(), "removed twice"),
                }
                assert!(kernel.len() <= planner.capacity.max(planner.installed.len()));
            }
            assert_eq!(*kernel, planner.installed);
            steps
        }

        fn answer(&mut self, chain: &[&str], addresses: &[(u8, u32)]) -> Vec<Step> {
            let changed = self.table.observe(&answer(chain, addresses), None, self.now);
            self.run(|planner, view| planner.readdress(changed, view))
        }

        fn pass(&mut self, seconds: BootNanos) -> Vec<Step> {
            self.now += seconds * SECOND;
            let changed = self.table.expire(self.now);
            let mut steps = self.run(|planner, view| planner.readdress(changed, view));
            steps.extend(self.run(|planner, view| planner.tick(view)));
            steps
        }

        fn replan(&mut self) -> Vec<Step> {
            self.run(|planner, view| planner.replan(view))
        }
    }

    #[test]
    fn any_name_of_the_chain_makes_the_claim() {
        let mut host = Host::new(&[(1, Verdict::Deny, "cdn"), (2, Verdict::Allow, "good")], 99, 99);
        assert_eq!(host.answer(&["a", "cdn"], &[(1, 10)]), [Step::Put(addr(1), deny(1, 10))]);
        assert_eq!(host.answer(&["other"], &[(2, 10)]), []);
        assert_eq!(host.answer(&["a", "cdn"], &[(1, 10)]), []);
        let both = Entry { allow: Claim::new(2, 5 * SECOND), ..deny(1, 10) };
        assert_eq!(host.answer(&["good"], &[(1, 5)]), [Step::Put(addr(1), both)]);
        assert_eq!(host.pass(5), []);
        assert_eq!(host.pass(5), [Step::Remove(addr(1))]);
    }

    #[test]
    fn a_policy_change_reaches_answers_already_seen() {
        let mut host = Host::new(&[(1, Verdict::Deny, "a")], 99, 99);
        host.answer(&["a"], &[(1, 10)]);
        host.answer(&["b"], &[(2, 10)]);
        host.rules = Rules(vec![(2, Verdict::Deny, "b")]);
        assert_eq!(host.replan(), [Step::Put(addr(2), deny(2, 10)), Step::Remove(addr(1))]);
        assert_eq!(host.replan(), []);
    }

    #[test]
    fn adopted_claims_hold_until_they_run_out_or_their_rule_is_gone() {
        let rules = [(1, Verdict::Deny, "a"), (2, Verdict::Deny, "b")];
        let mut host = Host::new(&rules, 99, 99);
        for (last, rule, until) in [(1, 1, 10), (2, 2, 20), (3, 3, 20)] {
            host.adopt(last, deny(rule, until));
        }
        assert_eq!(host.replan(), [Step::Remove(addr(3))]);
        assert_eq!(host.answer(&["harmless"], &[(1, 50)]), []);
        assert_eq!(host.answer(&["a"], &[(1, 5)]), []);
        assert_eq!(host.pass(10), [Step::Remove(addr(1))]);
        host.rules = Rules(rules[..1].to_vec());
        assert_eq!(host.replan(), [Step::Remove(addr(2))]);
        host.rules = Rules(rules.to_vec());
        assert_eq!(host.replan(), []);
    }

    #[test]
    fn never_denied_addresses_have_no_entry_and_are_reported() {
        let mut host = Host::new(&[(1, Verdict::Deny, "a"), (2, Verdict::Allow, "b")], 99, 99);
        host.never = vec![addr(1)];
        assert_eq!(host.answer(&["a"], &[(1, 10)]), []);
        assert_eq!(host.answer(&["x", "a"], &[(1, 10)]), []);
        assert_eq!(host.answer(&["b"], &[(1, 10)]), []);
        assert_eq!(host.planner.refused().collect::<Vec<_>>(), [(addr(1), 2)]);
        host.never = vec![addr(2)];
        let both = Entry { allow: Claim::new(2, 10 * SECOND), ..deny(1, 10) };
        assert_eq!(host.replan(), [Step::Put(addr(1), both)]);
        assert_eq!(host.planner.refused().count(), 0);
        host.never = vec![addr(1)];
        assert_eq!(host.replan(), [Step::Remove(addr(1))]);
    }

    #[test]
    fn a_full_map_evicts_nothing_and_takes_more_when_there_is_room() {
        let mut host = Host::new(&[(1, Verdict::Deny, "a"), (2, Verdict::Deny, "b")], 99, 2);
        host.answer(&["a"], &[(1, 10), (2, 20)]);
        assert_eq!(host.answer(&["b"], &[(3, 99), (2, 99)]), [Step::Put(addr(2), deny(2, 99))]);
        assert_eq!(host.planner.owed(), 1);
        assert_eq!(host.pass(5), []);
        assert_eq!(host.pass(5), [Step::Remove(addr(1)), Step::Put(addr(3), deny(2, 99))]);
        assert_eq!(host.planner.owed(), 0);
    }

    #[test]
    fn a_full_map_makes_room_by_removals_only_after_them() {
        let mut host = Host::new(&[(1, Verdict::Deny, "a")], 99, 1);
        host.answer(&["a"], &[(1, 10)]);
        host.answer(&["b"], &[(2, 10)]);
        host.rules = Rules(vec![(2, Verdict::Deny, "b")]);
        assert_eq!(host.replan(), [Step::Remove(addr(1))]);
        assert_eq!(host.pass(0), [Step::Put(addr(2), deny(2, 10))]);
    }

    #[test]
    fn a_failed_step_is_tried_again() {
        let mut host = Host::new(&[(1, Verdict::Deny, "a")], 99, 99);
        host.answer(&["a"], &[(1, 10)]);
        host.planner.failed(addr(1));
        host.kernel.remove(&addr(1));
        assert_eq!((host.planner.owed(), host.planner.installed().len()), (1, 0));
        assert_eq!(host.pass(1), [Step::Put(addr(1), deny(1, 10))]);
        assert_eq!(host.pass(1), []);
        host.rules = Rules::default();
        host.replan();
        host.planner.failed(addr(1));
        host.kernel.insert(addr(1), deny(1, 10));
        let Host { planner, table, rules, now, .. } = &mut host;
        let view = View { table, matcher: rules, never: &|_| false, now: *now };
        assert_eq!(planner.tick(&view), [Step::Remove(addr(1))]);
        assert_eq!(planner.tick(&view), []);
    }

    #[test]
    fn what_was_denied_stays_denied_when_its_binding_makes_room() {
        let mut host = Host::new(&[(1, Verdict::Deny, "a")], 2, 99);
        host.answer(&["a"], &[(1, 50)]);
        for name in ["x", "y", "z"] {
            assert_eq!(host.answer(&[name], &[(1, 99), (2, 99)]), [], "flood");
        }
        assert_eq!(host.table.evicted, 5);
        assert_eq!(host.replan(), [], "carried");
        assert_eq!(host.pass(50), [Step::Remove(addr(1))]);
    }

    fn keep(seats: Seats) -> Kept {
        Kept { seats, part: Part::Exceptions }
    }

    #[test]
    fn old_seats_stay_until_the_new_rules_are_alone_in_force() {
        let seats = |all: &[u32], seconds: BootNanos| {
            let mut seats = Seats::NONE;
            all.iter().for_each(|seat| seats.add(&Seats::one(*seat)));
            Entry { conditional: Conditional::new(seats, seconds * SECOND), ..Entry::NONE }
        };
        let mut host = Host::new(&[(4, Verdict::Deny, "a"), (1, Verdict::Deny, "b")], 99, 99);
        host.answer(&["a"], &[(1, 20)]);
        host.answer(&["b"], &[(1, 10), (2, 10)]);
        let both = Entry { deny: Claim::new(1, 10 * SECOND), ..seats(&[4], 20) };
        assert_eq!(host.kernel[&addr(1)], both);
        // "a" gets another seat, "b" a conditional rule.
        host.rules = Rules(vec![(5, Verdict::Deny, "a"), (6, Verdict::Deny, "b")]);
        host.run(|planner, view| planner.prepare(keep(Seats::one(4)), Part::Exceptions, view));
        assert_eq!(
            host.kernel[&addr(1)],
            Entry { deny: Claim::new(1, 10 * SECOND), ..seats(&[4, 5, 6], 20) }
        );
        assert_eq!(host.kernel[&addr(2)], Entry { deny: Claim::new(1, 10 * SECOND), ..seats(&[6], 10) });
        host.replan();
        assert_eq!(host.kernel[&addr(1)], seats(&[4, 5, 6], 20));
        // An answer in between carries nothing over.
        host.answer(&["a"], &[(1, 30)]);
        assert_eq!(host.kernel[&addr(1)], seats(&[4, 5, 6], 30));
        host.run(Planner::conclude);
        assert_eq!(host.kernel, [(addr(1), seats(&[5, 6], 30)), (addr(2), seats(&[6], 10))].into());
        // Each goes when its own time has come.
        assert_eq!(host.pass(10), [Step::Put(addr(1), seats(&[5], 30)), Step::Remove(addr(2))]);
        assert_eq!(host.pass(20), [Step::Remove(addr(1))]);
    }

    #[test]
    fn what_the_packet_path_entered_is_held_until_nothing_of_the_old_rules_is_in_force() {
        let seat =
            |seat| Entry { conditional: Conditional::new(Seats::one(seat), 20 * SECOND), ..Entry::NONE };
        let mut host = Host::new(&[(4, Verdict::Deny, "a")], 99, 99);
        host.answer(&["a"], &[(1, 20)]);
        host.rules = Rules(Vec::new());
        host.run(|planner, view| planner.prepare(keep(Seats::one(4)), Part::Exceptions, view));
        host.replan();
        assert_eq!(host.kernel, [(addr(1), seat(4))].into());
        // An exception that is not planned yet, a refusal that goes, a seat of the new rules, what ran out.
        let allow = Claim::new(1, 10 * SECOND);
        let entered = [
            (addr(1), Entry { allow, deny: allow, ..seat(5) }),
            (addr(2), Entry { deny: allow, ..Entry::NONE }),
            (addr(3), Entry { allow: Claim::new(1, 0), ..Entry::NONE }),
        ];
        host.run(|planner, view| planner.hold(entered, view));
        assert_eq!(host.kernel, [(addr(1), Entry { allow, ..seat(4) })].into());
        host.run(Planner::conclude);
        assert_eq!(host.kernel, HashMap::new());
        host.run(|planner, view| planner.hold(entered, view));
        assert_eq!(host.kernel, HashMap::new(), "no policy changes");
    }

    #[test]
    fn exceptions_come_first_and_go_last() {
        let mut host = Host::new(&[(1, Verdict::Allow, "a"), (2, Verdict::Deny, "b")], 99, 99);
        host.answer(&["a"], &[(1, 20)]);
        host.answer(&["b"], &[(1, 10), (2, 10)]);
        host.rules = Rules(vec![(3, Verdict::Allow, "b")]);
        host.run(|planner, view| planner.prepare(keep(Seats::NONE), Part::Exceptions, view));
        let allow = |rule, seconds: BootNanos| Claim::new(rule, seconds * SECOND);
        assert_eq!(host.kernel[&addr(1)], Entry { allow: allow(1, 20), ..deny(2, 10) });
        assert_eq!(host.kernel[&addr(2)], Entry { allow: allow(3, 10), ..deny(2, 10) });
        host.replan();
        assert_eq!(host.kernel[&addr(1)], Entry { allow: allow(1, 20), ..Entry::NONE });
        host.run(Planner::conclude);
        assert_eq!(host.kernel[&addr(1)], Entry { allow: allow(3, 10), ..Entry::NONE });
    }

    #[test]
    fn what_is_carried_speaks_as_its_rule_does_now() {
        let mut host = Host::new(&[(1, Verdict::Deny, "a")], 99, 99);
        host.adopt(1, deny(1, 10));
        host.adopt(2, Entry { conditional: Conditional::new(Seats::one(4), 10 * SECOND), ..Entry::NONE });
        host.replan();
        assert_eq!(host.kernel, [(addr(1), deny(1, 10))].into(), "nobody sits on seat 4");
        host.rules = Rules(vec![(1, Verdict::Allow, "a")]);
        host.replan();
        assert_eq!(host.kernel, [(addr(1), claim(Verdict::Allow, 1, 10 * SECOND))].into());
    }

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    const ACTIONS: [Verdict; 3] = [Verdict::Allow, Verdict::Deny, Verdict::Audit];

    #[derive(Clone, Debug)]
    enum Op {
        Answer(Vec<usize>, Vec<(u8, u32)>),
        Pass(BootNanos),
        Policy(Vec<(RuleId, usize, usize)>),
        Never(Vec<u8>),
        Failed(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let name = 0..NAMES.len();
        let rule = (1u32..6, 0..ACTIONS.len(), name.clone());
        prop_oneof![
            4 => (prop::collection::vec(name, 1..3), prop::collection::vec((0u8..5, 0u32..40), 0..4))
                .prop_map(|(chain, addresses)| Op::Answer(chain, addresses)),
            2 => (0u64..20).prop_map(Op::Pass),
            1 => prop::collection::vec(rule, 0..5).prop_map(Op::Policy),
            1 => prop::collection::vec(0u8..5, 0..2).prop_map(Op::Never),
            1 => (0u8..5).prop_map(Op::Failed),
        ]
    }

    fn adopted() -> impl Strategy<Value = Vec<(u8, usize, RuleId, BootNanos)>> {
        prop::collection::vec((0u8..5, 0..ACTIONS.len(), 1u32..6, 1u64..60), 0..4)
    }

    /// One reason for a claim, or for a seat in an entry.
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Source {
        addr: Addr,
        /// `None`: a conditional rule.
        action: Option<Verdict>,
        rule: RuleId,
        until: BootNanos,
    }

    impl Source {
        fn new(addr: Addr, action: Verdict, rule: RuleId, until: BootNanos) -> Self {
            Self { addr, action: (rule < CONDITIONAL).then_some(action), rule, until }
        }

        fn of(addr: Addr, entry: &Entry) -> Vec<Self> {
            let claims = ACTIONS.into_iter().zip([entry.allow, entry.deny, entry.audit]);
            let claims = claims.filter(|(_, claim)| *claim != Claim::NONE);
            let seats = entry.conditional.rules.iter();
            claims
                .map(|(action, claim)| Self::new(addr, action, claim.rule, claim.until))
                .chain(seats.map(|seat| Self::new(addr, Verdict::Deny, seat, entry.conditional.until)))
                .collect()
        }
    }

    /// The naive model: every binding and adopted claim in a list.
    #[derive(Default)]
    struct Model {
        bindings: Vec<(Arc<[&'static str]>, Addr, BootNanos)>,
        adopted: Vec<Source>,
    }

    impl Model {
        fn sources(&self, rules: &Rules, never: &[Addr], now: BootNanos) -> Vec<Source> {
            let mut sources = self.adopted.clone();
            for (chain, addr, until) in &self.bindings {
                let matching = rules.0.iter().filter(|(_, _, name)| chain.contains(name));
                sources.extend(matching.map(|(id, action, _)| Source::new(*addr, *action, *id, *until)));
            }
            sources.retain(|source| now < source.until && !never.contains(&source.addr));
            sources
        }

        /// What was adopted, as these rules say it. Of one action, or one conditional rule, the longest.
        fn say(&mut self, rules: &Rules, now: BootNanos) {
            let mut said: Vec<Source> = Vec::new();
            self.adopted.sort_by_key(|s| (s.addr, s.action.map_or(9, |action| action as u8), s.rule));
            for source in self.adopted.iter().filter(|source| now < source.until) {
                for (id, action, _) in rules.0.iter().filter(|(id, _, _)| *id == source.rule) {
                    let new = Source::new(source.addr, *action, *id, source.until);
                    let same = |old: &&mut Source| {
                        (old.addr, old.action) == (new.addr, new.action)
                            && (new.action.is_some() || old.rule == new.rule)
                    };
                    match said.iter_mut().find(same) {
                        Some(old) if old.until < new.until => *old = new,
                        Some(_) => {}
                        None => said.push(new),
                    }
                }
            }
            self.adopted = said;
        }

        fn check(&self, host: &Host) -> Result<(), TestCaseError> {
            let sources = self.sources(&host.rules, &host.never, host.now);
            for last in 0..5 {
                let entry = host.planner.installed().get(&addr(last)).copied();
                prop_assert!(entry.is_none_or(|entry| live(entry, host.now) != Entry::NONE), "garbage");
                let entry = live(entry.unwrap_or(Entry::NONE), host.now);
                for (action, claim) in ACTIONS.into_iter().zip([entry.allow, entry.deny, entry.audit]) {
                    let mine = || sources.iter().filter(|s| (s.addr, s.action) == (addr(last), Some(action)));
                    prop_assert_eq!(claim.until, mine().map(|s| s.until).max().unwrap_or(0));
                    prop_assert!(
                        claim == Claim::NONE
                            || mine().any(|s| (s.rule, s.until) == (claim.rule, claim.until))
                    );
                }
                let mine = sources.iter().filter(|s| (s.addr, s.action) == (addr(last), None));
                let (mut seats, mut until) = (Seats::NONE, 0);
                for source in mine {
                    seats.add(&Seats::one(source.rule));
                    until = source.until.max(until);
                }
                prop_assert_eq!(entry.conditional, Conditional::new(seats, until));
            }
            Ok(())
        }
    }

    fn apply(op: Op, host: &mut Host, model: &mut Model) {
        match op {
            Op::Answer(chain, addresses) => {
                let chain: Vec<_> = chain.iter().map(|index| NAMES[*index]).collect();
                for (last, ttl) in &addresses {
                    let until = host.now + BootNanos::from(*ttl) * SECOND;
                    model.bindings.push((chain.clone().into(), addr(*last), until));
                }
                host.answer(&chain, &addresses);
            }
            Op::Pass(seconds) => drop(host.pass(seconds)),
            Op::Policy(rules) => {
                let rule =
                    |(id, action, name): &(RuleId, usize, usize)| (*id, ACTIONS[*action], NAMES[*name]);
                host.rules = Rules(rules.iter().map(rule).collect());
                model.say(&host.rules, host.now);
                host.replan();
            }
            Op::Never(addrs) => {
                host.never = addrs.into_iter().map(addr).collect();
                host.replan();
                model.say(&host.rules, host.now);
            }
            Op::Failed(last) => {
                host.planner.failed(addr(last));
                host.kernel.remove(&addr(last));
                host.kernel.insert(addr(last), Entry::NONE); // so that a removal is not "twice"
                host.planner.installed.insert(addr(last), Entry::NONE);
                host.run(|planner, view| planner.tick(view));
            }
        }
    }

    proptest! {
        #[test]
        fn installed_is_what_policies_bindings_and_adopted_claims_say(
            adopted in adopted(), ops in prop::collection::vec(op(), 1..40),
        ) {
            let mut host = Host::new(&[(1, Verdict::Deny, "a"), (2, Verdict::Deny, "b")], 999, 999);
            let mut model = Model::default();
            for (last, action, rule, until) in adopted {
                let (action, until) = (ACTIONS[action], until * SECOND);
                let had = host.kernel.get(&addr(last)).copied().unwrap_or(Entry::NONE);
                host.adopt(last, had.merge(claim(action, rule, until)));
            }
            model.adopted.extend(host.kernel.iter().flat_map(|(addr, entry)| Source::of(*addr, entry)));
            model.say(&host.rules, host.now);
            host.replan();
            model.check(&host)?;
            for op in ops {
                apply(op, &mut host, &mut model);
                model.check(&host)?;
            }
        }

        /// However small the table and the map: what is denied stays so until it runs out, and the map never
        /// holds more than it can.
        #[test]
        fn floods_free_nothing(
            ops in prop::collection::vec(
                (0..NAMES.len(), prop::collection::vec((0u8..5, 1u32..40), 0..4), 0u64..5), 1..40),
            table in 1usize..6, map in 1usize..8,
        ) {
            let mut host = Host::new(&[(1, Verdict::Deny, "a"), (2, Verdict::Deny, "b")], table, map);
            for (name, addresses, pause) in ops {
                host.pass(pause);
                let before = host.kernel.clone();
                host.answer(&[NAMES[name]], &addresses);
                for (addr, entry) in before {
                    prop_assert!(host.kernel.get(&addr).is_some_and(|now| now.deny.until >= entry.deny.until));
                }
                prop_assert!(host.kernel.len() <= map);
                if NAMES[name] == "a" && map > 5 {
                    prop_assert!(addresses.iter().all(|(last, _)| host.kernel.contains_key(&addr(*last))));
                }
            }
        }
    }
}
