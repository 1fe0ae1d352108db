//! Every map: who writes, who reads, what happens when it is full.

use aya_ebpf::{
    btf_maps::{HashMap, LpmTrie, PerCpuArray, RingBuf},
    macros::btf_map,
};
use enforcer_common::{
    Entry,
    counter::{COUNTERS, Counter},
    limits,
};

/// Canonical address → claims. Written by the daemon, read by every connect hook.
/// Full: the daemon's insert fails, is counted and alarmed; nothing is evicted.
#[btf_map]
pub static ADDRESSES: HashMap<[u8; 16], Entry, { limits::ADDRESSES as usize }> = HashMap::new();

/// Network → claims of every rule that names it or a network around it. Written by the daemon, read by every
/// connect hook. Full: the policy is refused when it is loaded.
#[btf_map]
pub static NETWORKS: LpmTrie<[u8; 16], Entry, { limits::NETWORKS as usize }> = LpmTrie::new();

/// Reports and answers, in the order in which they happened. Written by every program, read by the daemon.
/// Full: the record is lost and counted; no verdict depends on it.
#[btf_map]
pub static RING: RingBuf<[u8; 8], { limits::RING_BYTES as usize }> = RingBuf::new();

/// Written by every program, read by the daemon.
#[btf_map]
pub static COUNTS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's own. A program that interrupts this one between the read and the
        // write (softirq) can lose an increment; never memory safety.
        unsafe { *slot += 1 };
    }
}
