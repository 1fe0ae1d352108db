//! Addresses that names lead to which no rule refuses, for rules with `shared = "allow"`.
//!
//! Whatever is not certain is not shared: an answer that nobody asked for, that the kernel does not decide alone, or that has a
//! denied name in it makes no address shared.

use core::ops::ControlFlow;

use aya_ebpf::bindings::BPF_ANY;
use enforcer_common::{
    answer::{ADDRESSES, Scratch},
    condition::{Rows, rows::ALLOW},
    repeat::Step,
    verdict::BootNanos,
};

use crate::{
    conditions::Conditions,
    kernel::lifetime,
    maps::{SHARED, WORK},
    tables::repeat,
};

/// Notes the addresses of the answer at hand, which is believed and decided, unless a rule refuses one of its names.
///
/// A global function: the verifier follows what happens in here once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note() -> u64 {
    let Some(work) = WORK.get_ptr(0) else { return 0 };
    // SAFETY: this CPU's own element, which the caller has taken, and leaves alone until this returns.
    let work = unsafe { &*work };
    let scratch = &work.scratch;
    let rules = Conditions::new();
    if !scratch.claimed().is_innocent(rules.as_ref().and_then(|rules| rules.row(ALLOW))) {
        return 0;
    }
    let mut noting = Noting { scratch, cap: lifetime().cap, now: work.record.time };
    repeat::<Note, _>(scratch.found_len, &mut noting);
    0
}

struct Noting<'a> {
    scratch: &'a Scratch,
    cap: u32,
    now: BootNanos,
}

struct Note;

impl Step<Noting<'_>> for Note {
    #[inline(always)]
    fn step(noting: &mut Noting<'_>, index: u32) -> ControlFlow<()> {
        let found = &noting.scratch.found[index as usize % ADDRESSES];
        let until = noting.scratch.shared_until(found, noting.cap, noting.now);
        let key = found.addr.octets();
        // SAFETY: a word, read as one.
        let known = unsafe { SHARED.get(&key) }.is_some_and(|known| *known >= until);
        if !known {
            // Fails only if the map is out of memory: then the address is not shared.
            let _ = SHARED.insert(&key, &until, BPF_ANY.into());
        }
        ControlFlow::Continue(())
    }
}

/// Whether a name that no rule refuses is known to lead there.
#[inline(always)]
pub fn holds(key: &[u8; 16], now: BootNanos) -> bool {
    // SAFETY: a word, read as one.
    unsafe { SHARED.get(key) }.is_some_and(|until| now < *until)
}
