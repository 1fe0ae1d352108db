//! New addresses, charged to the name and the rule that bring them.

use aya_ebpf::{bindings::BPF_ANY, btf_maps::LruHashMap, macros::btf_map};
use enforcer_common::{
    limits,
    quota::{Account, Over},
    verdict::BootNanos,
};

use crate::kernel::{name_quota, rule_quota};

/// Name or rule → when its account is empty. Written and read by `dns_ingress`. Full: the one that was not charged for
/// longest makes room, and begins anew.
#[btf_map]
static ACCOUNTS: LruHashMap<u64, BootNanos, { limits::ACCOUNTS as usize }> = LruHashMap::new();

/// One address more. Not 0: an `Over`; there is no room for it, and nothing is charged. Two CPUs that charge the same account at
/// once may pay for one address.
#[inline(always)]
pub fn charge(account: &Account, now: BootNanos) -> u64 {
    if account.is_none() { 0 } else { charge_both(account.name, account.rule, now) }
}

/// A global function, of words and with a word as its result: the verifier follows what happens in here once, and not
/// again for every way that leads here and everything that comes after it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn charge_both(name: u64, rule: u64, now: BootNanos) -> u64 {
    let Some(name_empty) = name_quota().charge(empty(&name), now) else { return Over::Name as u64 };
    let Some(rule_empty) = rule_quota().charge(empty(&rule), now) else { return Over::Rule as u64 };
    set(&name, name_empty);
    set(&rule, rule_empty);
    0
}

#[inline(always)]
fn empty(key: &u64) -> BootNanos {
    // SAFETY: a word, read as one.
    match unsafe { ACCOUNTS.get(key) } {
        Some(empty) => *empty,
        None => 0,
    }
}

#[inline(always)]
fn set(key: &u64, empty: BootNanos) {
    // Fails only if the map is out of memory: the address is entered nevertheless.
    let _ = ACCOUNTS.insert(key, &empty, BPF_ANY.into());
}
