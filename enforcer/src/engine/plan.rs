//! The map of addresses as it should be, and the steps that lead there.
//!
//! A claim on an address comes from a binding (a name that a rule names leads there), or is *carried*: adopted
//! from the previous daemon, or left by a binding that had to make room in the DNS table. Between two
//! `replan`s claims only grow or run out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use enforcer_common::limits::ADDRESSES;
use enforcer_common::verdict::BootNanos;
use enforcer_common::{Addr, Claim, Entry, RuleId};

use super::dns::table::Table;
use super::name::Name;

/// The rules, as far as the planner needs them.
pub trait Matcher {
    /// The claims of the rules that name any name of the chain.
    fn entry(&self, chain: &[Name], until: BootNanos) -> Entry;
    /// Is this rule part of the policy?
    fn knows(&self, rule: RuleId) -> bool;
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
    /// Of `installed`, by the time at which the whole entry has run out.
    by_until: BTreeSet<(BootNanos, Addr)>,
    /// Claims without a binding.
    carried: HashMap<Addr, Entry>,
    /// Addresses whose entry is not in the kernel as it should be.
    owed: BTreeMap<Addr, Owed>,
    /// Addresses in the never-deny set, with how many of their bindings deny or audit.
    refused: HashMap<Addr, usize>,
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
            by_until: BTreeSet::new(),
            carried: HashMap::new(),
            owed: BTreeMap::new(),
            refused: HashMap::new(),
        }
    }

    /// An entry that the kernel's map has already. Its claims hold until they run out or their rule is gone.
    pub fn adopt(&mut self, addr: Addr, entry: Entry) {
        self.set(addr, Some(entry));
        self.carry(addr, entry);
    }

    /// Claims that hold without a binding until they run out or their rule is gone. To be followed by `replan`.
    pub fn carry(&mut self, addr: Addr, claims: Entry) {
        carry(&mut self.carried, addr, claims);
    }

    /// After an answer was taken or bindings ran out: the addresses that the table reported. The policy and
    /// the never-deny set must be those of the last `replan`.
    pub fn readdress(&mut self, addrs: impl IntoIterator<Item = Addr>, view: &View<'_>) -> Vec<Step> {
        let mut wanted = BTreeMap::new();
        for addr in addrs {
            let entry =
                self.wanted(addr, view).map(|entry| self.keep_what_lost_its_binding(addr, entry, view.now));
            wanted.insert(addr, entry.unwrap_or(Entry::NONE));
        }
        self.steps(wanted, view.now)
    }

    /// After a start, or a change of the policy or the never-deny set: every address. All puts come before
    /// all removals, so that no moment denies less than the old and the new policy share.
    pub fn replan(&mut self, view: &View<'_>) -> Vec<Step> {
        let known = |claim: Claim| if view.matcher.knows(claim.rule) { claim } else { Claim::NONE };
        self.carried.retain(|_, entry| {
            *entry = each(live(*entry, view.now), known);
            *entry != Entry::NONE
        });
        self.refused.clear();
        let all = view.table.addresses();
        let all = all.chain(self.installed.keys().copied()).chain(self.owed.keys().copied());
        let all: BTreeSet<_> = all.chain(self.carried.keys().copied()).collect();
        let wanted = |addr| (addr, self.wanted(addr, view).unwrap_or(Entry::NONE));
        let wanted = all.into_iter().map(wanted).collect();
        self.steps(wanted, view.now)
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

    fn steps(&mut self, wanted: BTreeMap<Addr, Entry>, now: BootNanos) -> Vec<Step> {
        let (removals, puts): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, e)| *e == Entry::NONE);
        let mut steps: Vec<_> =
            puts.into_iter().filter_map(|(addr, entry)| self.put(addr, entry, now)).collect();
        steps.extend(removals.into_iter().filter_map(|(addr, _)| self.remove(addr)));
        steps
    }

    /// None for an address that is never denied.
    fn wanted(&mut self, addr: Addr, view: &View<'_>) -> Option<Entry> {
        let alive = view.table.bindings(addr).filter(|binding| view.now < binding.until);
        let claims = alive.map(|binding| view.matcher.entry(&binding.chain, binding.until));
        if !(view.never)(addr) {
            let carried = self.carried.get(&addr).map_or(Entry::NONE, |entry| live(*entry, view.now));
            return Some(claims.fold(carried, Entry::merge));
        }
        match claims.filter(|entry| entry.deny != Claim::NONE || entry.audit != Claim::NONE).count() {
            0 => self.refused.remove(&addr),
            count => self.refused.insert(addr, count),
        };
        None
    }

    /// A claim that is installed and alive, but that nothing makes any more, was made by a binding that had
    /// to make room in the table: it is carried from now on.
    fn keep_what_lost_its_binding(&mut self, addr: Addr, wanted: Entry, now: BootNanos) -> Entry {
        if self.carried.get(&addr).is_some_and(|entry| entry.last_until() <= now) {
            self.carried.remove(&addr);
        }
        let installed = self.installed.get(&addr).map_or(Entry::NONE, |entry| live(*entry, now));
        let beyond = |had: Claim, wanted: Claim| if had.until > wanted.until { had } else { Claim::NONE };
        let left = Entry {
            allow: beyond(installed.allow, wanted.allow),
            deny: beyond(installed.deny, wanted.deny),
            audit: beyond(installed.audit, wanted.audit),
        };
        carry(&mut self.carried, addr, left);
        wanted.merge(left)
    }

    fn put(&mut self, addr: Addr, entry: Entry, now: BootNanos) -> Option<Step> {
        match self.installed.get(&addr) {
            Some(had) if live(*had, now) == entry => return None,
            None if self.installed.len() >= self.capacity => {
                self.owed.entry(addr).or_insert(Owed::Room);
                return None;
            }
            _ => {}
        }
        self.owed.remove(&addr);
        self.set(addr, Some(entry));
        Some(Step::Put(addr, entry))
    }

    fn remove(&mut self, addr: Addr) -> Option<Step> {
        let had = self.set(addr, None);
        let unsure = self.owed.remove(&addr) == Some(Owed::Retry);
        (had.is_some() || unsure).then_some(Step::Remove(addr))
    }

    fn set(&mut self, addr: Addr, entry: Option<Entry>) -> Option<Entry> {
        let had = match entry {
            Some(entry) => self.installed.insert(addr, entry),
            None => self.installed.remove(&addr),
        };
        if let Some(had) = had {
            self.by_until.remove(&(had.last_until(), addr));
        }
        if let Some(entry) = entry {
            self.by_until.insert((entry.last_until(), addr));
        }
        had
    }
}

fn carry(carried: &mut HashMap<Addr, Entry>, addr: Addr, claims: Entry) {
    if claims != Entry::NONE {
        let entry = carried.entry(addr).or_insert(Entry::NONE);
        *entry = entry.merge(claims);
    }
}

/// The claims that hold.
fn live(entry: Entry, now: BootNanos) -> Entry {
    each(entry, |claim| if claim.holds(now) { claim } else { Claim::NONE })
}

fn each(entry: Entry, change: impl Fn(Claim) -> Claim) -> Entry {
    Entry { allow: change(entry.allow), deny: change(entry.deny), audit: change(entry.audit) }
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

        fn knows(&self, rule: RuleId) -> bool {
            self.0.iter().any(|(id, _, _)| *id == rule)
        }
    }

    fn claim(action: Verdict, rule: RuleId, until: BootNanos) -> Entry {
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
        for (last, rule, until) in [(1, 1, 10), (2, 2, 20), (3, 9, 20)] {
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

    /// One reason for a claim.
    type Source = (Addr, Verdict, RuleId, BootNanos);

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
                sources.extend(matching.map(|(id, action, _)| (*addr, *action, *id, *until)));
            }
            sources.retain(|(addr, _, _, until)| now < *until && !never.contains(addr));
            sources
        }

        fn check(&self, host: &Host) -> Result<(), TestCaseError> {
            let sources = self.sources(&host.rules, &host.never, host.now);
            for last in 0..5 {
                let entry = host.planner.installed().get(&addr(last)).copied();
                prop_assert!(entry.is_none_or(|entry| live(entry, host.now) != Entry::NONE), "garbage");
                let entry = live(entry.unwrap_or(Entry::NONE), host.now);
                for (action, claim) in ACTIONS.into_iter().zip([entry.allow, entry.deny, entry.audit]) {
                    let mine = || sources.iter().filter(|s| (s.0, s.1) == (addr(last), action));
                    prop_assert_eq!(claim.until, mine().map(|s| s.3).max().unwrap_or(0));
                    prop_assert!(
                        claim == Claim::NONE || mine().any(|s| (s.2, s.3) == (claim.rule, claim.until))
                    );
                }
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
                model.adopted.retain(|(_, _, rule, _)| host.rules.knows(*rule));
                host.replan();
            }
            Op::Never(addrs) => {
                host.never = addrs.into_iter().map(addr).collect();
                host.replan();
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
            for (addr, entry) in &host.kernel {
                for (action, claim) in ACTIONS.into_iter().zip([entry.allow, entry.deny, entry.audit]) {
                    if host.rules.knows(claim.rule) {
                        model.adopted.push((*addr, action, claim.rule, claim.until));
                    }
                }
            }
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
