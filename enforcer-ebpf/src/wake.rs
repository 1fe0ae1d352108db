//! When the daemon is woken: to be woken for every record costs more than the record.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    btf_maps::Array,
    macros::btf_map,
};
use enforcer_common::{limits::WAKE_EVERY, verdict::BootNanos};

/// When it was woken last. Written and read by every program that reports; if two write at once, it is woken twice.
#[btf_map]
static WOKEN: Array<BootNanos, 1> = Array::new();

/// The flags with which a record goes to the ring. The daemon looks again `WAKE_EVERY` after it was woken, so what is not
/// urgent waits no longer than that.
#[inline(always)]
pub fn flags(now: BootNanos, urgent: bool) -> u64 {
    let Some(woken) = WOKEN.get_ptr_mut(0) else { return 0 };
    // SAFETY: an aligned element of the map.
    unsafe {
        if !urgent && now.wrapping_sub(woken.read_volatile()) < WAKE_EVERY {
            return BPF_RB_NO_WAKEUP.into();
        }
        woken.write_volatile(now);
    }
    BPF_RB_FORCE_WAKEUP.into()
}
