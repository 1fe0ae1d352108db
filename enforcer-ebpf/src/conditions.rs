//! Conditional rules: one generation of their table, chosen once a connect or a packet, and what they decide.

use aya_ebpf::btf_maps::lpm_trie::Key;
use enforcer_common::{
    Decision, Entry, RuleId, Seats, Verdict,
    condition::{Rows, decide as decide_by, may_allow as allows, narrow, spare},
    counter::Counter,
    verdict::NO_RULE,
};

use crate::{
    maps::{ADDRESSES, ANSWERED, CONDITIONS, ConditionRows, NETWORKS, count},
    scope::{self, Scratch},
    shared,
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

/// In place of a verdict: no rule decides, because the destination is shared. The rule is one that would.
const SPARED: u64 = 3;

/// What the conditional rules that name this destination decide about a connect of the current process; and if none does
/// because the destination is shared, one that would (else `NO_RULE`).
#[inline(always)]
pub fn decide(key: &[u8; 16], now: u64, port: u16, protocol: u16) -> (Decision, RuleId) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *key;
    let high = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    let low = u64::from_ne_bytes([i, j, k, l, m, n, o, p]);
    let packed = decide_packed(high, low, now, u64::from(port) << 16 | u64::from(protocol));
    let rule = packed as u32;
    match Verdict::from_wire((packed >> 32) as u8) {
        Some(verdict) if rule != NO_RULE => (Decision { verdict, rule }, NO_RULE),
        Some(_) => (Decision::DEFAULT, NO_RULE),
        None => (Decision::DEFAULT, rule),
    }
}

/// Whether a conditional rule that names this destination may let a connect through that other rules refuse.
#[inline(always)]
pub fn may_allow(key: &[u8; 16], now: u64) -> bool {
    let key = u128::from_ne_bytes(*key);
    may_allow_packed(key as u64, (key >> 64) as u64, now) != 0
}

/// A global function, as `decide_packed`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn may_allow_packed(low: u64, high: u64, now: u64) -> u64 {
    let key = (u128::from(high) << 64 | u128::from(low)).to_ne_bytes();
    let Some(rules) = Conditions::new() else { return 0 };
    let excepts = |entry: &Entry| entry.conditional.holds(now) && allows(&entry.conditional.rules, &rules);
    // SAFETY: the kernel replaces whole elements.
    let mut some = unsafe { ADDRESSES.get(&key) }.is_some_and(&excepts);
    for slot in 0..2 {
        // SAFETY: elements are changed in place, word by word, each word valid with the others' old values.
        some |= ANSWERED.get(slot).and_then(|map| unsafe { map.get(&key) }).is_some_and(&excepts);
    }
    some |= NETWORKS.get(&Key::new(128, key)).is_some_and(&excepts);
    some.into()
}

/// A global function, of words and with a word as its result: the verifier follows what happens in here once, and not
/// again for every way that leads here and everything that comes after it. For the same reason all sets are in map
/// memory.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn decide_packed(high: u64, low: u64, now: u64, port_and_protocol: u64) -> u64 {
    let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (high.to_ne_bytes(), low.to_ne_bytes());
    let key = [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p];
    let (port, protocol) = ((port_and_protocol >> 16) as u16, port_and_protocol as u16);
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
    if let Some(entry) = unsafe { ADDRESSES.get(&key) } {
        hear(entry);
    }
    for slot in 0..2 {
        // SAFETY: elements are changed in place, word by word, each word valid with the others' old values.
        if let Some(entry) = ANSWERED.get(slot).and_then(|map| unsafe { map.get(&key) }) {
            hear(entry);
        }
    }
    if let Some(entry) = NETWORKS.get(&Key::new(128, key)) {
        hear(entry);
    }
    let mut packed = 0;
    if let Some(rules) = Conditions::new() {
        narrow(&mut scratch.named, &rules, port, protocol);
        if !scratch.named.is_none() {
            scope::keep(scratch, &rules);
        }
        let spared = spare(&mut scratch.named, &rules, || shared::holds(&key, now));
        let Decision { verdict, rule } = decide_by(&scratch.named, &rules);
        packed = if rule == NO_RULE && spared != NO_RULE {
            SPARED << 32 | u64::from(spared)
        } else {
            (verdict as u64) << 32 | u64::from(rule)
        };
    }
    scratch.release();
    packed
}
