//! Counting of repeats: the first connect of its kind in a window is reported at once, the others are one number.

use aya_ebpf::bindings::BPF_NOEXIST;
use enforcer_common::{
    counter::Counter,
    event::{FIRST, RepeatKey, Repeats},
};

use crate::{
    atomic,
    draft::Draft,
    maps::{REPEATS, RepeatMap, count},
};

/// True: counted, and not to be reported. `key` is that of the draft's record.
#[inline(always)]
pub fn counted(draft: &mut Draft, key: &RepeatKey) -> bool {
    let Some(window) = REPEATS.get(0) else { return false };
    if counted_in(window, draft, key) {
        return true;
    }
    draft.repeats.count = 0;
    draft.repeats.last = draft.repeats.record.time;
    if window.insert(key, &draft.repeats, BPF_NOEXIST.into()).is_ok() {
        draft.repeats.record.flags |= FIRST;
        return false;
    }
    // Another CPU was faster, or there is no room.
    if counted_in(window, draft, key) {
        return true;
    }
    count(Counter::Unaggregated);
    false
}

/// The number of the record that was reported for the draft's kind.
#[inline(always)]
pub fn remember_sequence(key: &RepeatKey, sequence: u64) {
    if let Some(repeats) = REPEATS.get(0).and_then(|window| window.get_ptr_mut(key)) {
        // SAFETY: an aligned word of an element that lives until the program ends.
        unsafe { (&raw mut (*repeats).record.sequence).write_volatile(sequence) };
    }
}

#[inline(always)]
fn counted_in(window: &RepeatMap, draft: &Draft, key: &RepeatKey) -> bool {
    let Some(repeats): Option<*mut Repeats> = window.get_ptr_mut(key) else { return false };
    count(Counter::Repeated);
    // SAFETY: an element that lives until the program ends; the daemon takes the map away before it reads it.
    unsafe {
        atomic::fetch_add(&raw mut (*repeats).count, 1);
        (&raw mut (*repeats).last).write_volatile(draft.repeats.record.time);
    }
    true
}
