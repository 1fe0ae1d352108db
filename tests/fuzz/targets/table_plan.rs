//! A sequence of answers, pauses, policies and failures: the steps always lead to what is installed, nothing
//! denied is freed before its time unless the policy changed, and every bound holds.
#![no_main]

use std::collections::HashMap;

use enforcer::engine::dns::table::{PER_ADDRESS, Table, TableConfig};
use enforcer::engine::dns::wire::Answer;
use enforcer::engine::name::Name;
use enforcer::engine::plan::{Matcher, Planner, Step, View};
use enforcer_common::{Addr, Claim, Entry, RuleId};
use libfuzzer_sys::fuzz_target;

const SECOND: u64 = 1_000_000_000;
const MAP: usize = 6;
const TABLE: usize = 12;

/// Rule `n` denies (or allows, if odd) the name `n`, if bit `n` is set.
struct Rules(u8);

impl Matcher for Rules {
    fn entry(&self, chain: &[Name], until: u64) -> Entry {
        let named = |rule: &RuleId| chain.iter().any(|name| name.as_str() == rule.to_string());
        (0..8).filter(named).map(|rule| self.by_rule(rule, until)).fold(Entry::NONE, Entry::merge)
    }

    fn by_rule(&self, rule: RuleId, until: u64) -> Entry {
        let claim = Claim::new(rule, until);
        match rule % 2 {
            _ if rule >= 8 || self.0 & (1 << rule) == 0 => Entry::NONE,
            0 => Entry { deny: claim, ..Entry::NONE },
            _ => Entry { allow: claim, ..Entry::NONE },
        }
    }

    fn on_seat(&self, seat: u32) -> RuleId {
        seat
    }
}

fn addr(byte: u8) -> Addr {
    Addr::from_v4([192, 0, 2, byte % 16])
}

fn answer(chain: u8, addresses: &[u8]) -> Option<Answer> {
    let name = |n: u8| Name::from_text(&n.to_string()).ok();
    let question = name(chain & 0xf)?;
    let mut names = vec![question.clone()];
    names.extend(name(chain >> 4).filter(|target| *target != question));
    Some(Answer {
        id: 0,
        question,
        qtype: 1,
        truncated: false,
        rcode: 0,
        chain: names,
        chain_cut: false,
        addresses: addresses.iter().map(|byte| (addr(*byte), u32::from(byte >> 4))).collect(),
    })
}

struct Host {
    table: Table,
    planner: Planner,
    rules: Rules,
    never: u8,
    now: u64,
    kernel: HashMap<Addr, Entry>,
}

impl Host {
    fn run(&mut self, plan: impl FnOnce(&mut Planner, &View<'_>) -> Vec<Step>) {
        let never = |addr| addr == self::addr(self.never);
        let view = View { table: &self.table, matcher: &self.rules, never: &never, now: self.now };
        let steps = plan(&mut self.planner, &view);
        assert!(steps.is_sorted_by_key(|step| matches!(step, Step::Remove(_))));
        for step in steps {
            match step {
                Step::Put(addr, entry) => {
                    assert_ne!(entry, Entry::NONE);
                    assert!(!never(addr));
                    self.kernel.insert(addr, entry);
                }
                Step::Remove(addr) => drop(self.kernel.remove(&addr)),
            }
            assert!(self.kernel.len() <= MAP);
        }
        assert_eq!(&self.kernel, self.planner.installed());
    }

    fn step(&mut self, op: u8, arg: u8, rest: &mut &[u8]) {
        match op % 8 {
            0 => {
                self.rules = Rules(arg);
                self.run(|planner, view| planner.replan(view));
            }
            1 => {
                self.never = arg;
                self.run(|planner, view| planner.replan(view));
            }
            2 => {
                self.planner.failed(addr(arg));
                self.kernel.remove(&addr(arg));
            }
            3 => {
                self.now += u64::from(arg) * SECOND;
                let changed = self.table.expire(self.now);
                self.run(|planner, view| planner.readdress(changed, view));
                self.run(|planner, view| planner.tick(view));
            }
            _ => {
                let (addresses, after) = rest.split_at(usize::from(op >> 4).min(rest.len()));
                *rest = after;
                let before = self.kernel.clone();
                let Some(answer) = answer(arg, addresses) else { return };
                let changed = self.table.observe(&answer, None, self.now);
                self.run(|planner, view| planner.readdress(changed, view));
                for (addr, entry) in before.iter().filter(|(_, entry)| entry.deny.until > self.now) {
                    assert!(self.kernel.get(addr).is_some_and(|new| new.deny.until >= entry.deny.until));
                }
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut host = Host {
        table: Table::new(TableConfig { ttl_floor: 2, ttl_cap: 12, capacity: TABLE }),
        planner: Planner::new(MAP),
        rules: Rules(0x3f),
        never: 15,
        now: 0,
        kernel: HashMap::new(),
    };
    let mut bytes = bytes;
    while let [op, arg, rest @ ..] = bytes {
        bytes = rest;
        host.step(*op, *arg, &mut bytes);
        // One answer has at most 15 addresses and is always taken as a whole.
        assert!(host.table.len() <= TABLE.max(15) && host.table.len() <= 16 * PER_ADDRESS);
    }
    host.table.expire(u64::MAX);
    assert!(host.table.is_empty() && host.table.addresses().next().is_none());
    host.now = u64::MAX;
    host.run(|planner, view| planner.tick(view));
    assert!(host.kernel.is_empty(), "everything runs out");
});
