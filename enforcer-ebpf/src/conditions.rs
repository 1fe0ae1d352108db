//! Conditional rules: one generation of their table, chosen once a connect or a packet, and what they decide.

use aya_ebpf::btf_maps::lpm_trie::Key;
use enforcer_common::{
    Decision, Entry, Seats, Verdict,
    condition::{Rows, decide as decide_by, narrow},
    counter::Counter,
    verdict::NO_RULE,
};

use crate::{
    maps::{ADDRESSES, ANSWERED, CONDITIONS, ConditionRows, NETWORKS, count},
    scope::{self, Scratch},
};

/// One generation. The kernel keeps its map alive while this program runs.
pub struct Conditions(&'static ConditionRows);

impl Conditions {
    /// None before the daemon has filled it.
    #[inline(always)]
    pub fn new() -> Option<Self> {
        CONDITIONS.get(0).map(Self)
    }
}

impl Rows for Conditions {
    #[inline(always)]
    fn row(&self, index: u32) -> Option<&Seats> {
        self.0.get(index)
    }
}

/// What the conditional rules that name this destination decide about a connect of the current process.
#[inline(always)]
pub fn decide(key: &[u8; 16], now: u64, port: u16, protocol: u16) -> Decision {
    let packed = decide_packed(key, now, port.into(), protocol.into());
    let rule = packed as u32;
    match Verdict::from_wire((packed >> 32) as u8) {
        Some(verdict) if rule != NO_RULE => Decision { verdict, rule },
        _ => Decision::DEFAULT,
    }
}

/// A function of its own, with one word as its result: the verifier follows what happens in here once, and not again
/// for everything that comes after it. For the same reason all sets are in map memory.
#[inline(never)]
fn decide_packed(key: &[u8; 16], now: u64, port: u32, protocol: u32) -> u64 {
    let Some(scratch) = Scratch::take() else {
        count(Counter::FaultTask);
        return 0;
    };
    scratch.named = Seats::NONE;
    let mut hear = |entry: &Entry| {
        if entry.conditional.holds(now) {
            scratch.named.add(&entry.conditional.rules);
        }
    };
    // SAFETY: the kernel replaces whole elements.
    if let Some(entry) = unsafe { ADDRESSES.get(*key) } {
        hear(entry);
    }
    for slot in 0..2 {
        // SAFETY: elements are changed in place, word by word, each word valid with the others' old values.
        if let Some(entry) = ANSWERED.get(slot).and_then(|map| unsafe { map.get(*key) }) {
            hear(entry);
        }
    }
    if let Some(entry) = NETWORKS.get(&Key::new(128, *key)) {
        hear(entry);
    }
    let mut packed = 0;
    if let Some(rules) = Conditions::new() {
        narrow(&mut scratch.named, &rules, port as u16, protocol as u16);
        if !scratch.named.is_none() {
            scope::keep(scratch, &rules);
        }
        let Decision { verdict, rule } = decide_by(&scratch.named, &rules);
        packed = (verdict as u64) << 32 | u64::from(rule);
    }
    scratch.release();
    packed
}
