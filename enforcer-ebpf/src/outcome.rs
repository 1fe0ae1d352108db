//! What became of a connect that was not refused: reported when the call returns, if that is wanted.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_boot_ns};
use enforcer_common::{
    Verdict,
    event::{Layer, RETURNED},
};

use crate::{
    connect,
    draft::Draft,
    kernel::{File, Task, outcome_wanted},
    maps::PENDING,
    report,
};

/// Results that user space never sees (ERESTARTSYS to ERESTART_RESTARTBLOCK): a signal came.
const RESTART: core::ops::RangeInclusive<i32> = 512..=516;
const EINTR: i32 = 4;

/// True: put aside until the call returns.
#[inline(always)]
pub fn awaited(draft: &mut Draft, layer: Layer, verdict: Verdict) -> bool {
    if !outcome_wanted() || !matches!(layer, Layer::LsmConnect) || matches!(verdict, Verdict::Deny) {
        return false;
    }
    let Ok(tid) = Task::current().tid() else { return false };
    // An entry that is there already is of a call whose return was missed; the daemon will find it.
    PENDING.insert(tid, draft.record(), BPF_NOEXIST.into()).is_ok()
}

/// `connect` returned to whoever called it.
#[inline(always)]
pub fn returned(file: File, result: i32) {
    let Ok(tid) = Task::current().tid() else { return };
    // SAFETY: nobody else writes or removes this thread's entry but the daemon, after minutes.
    let Some(pending) = (unsafe { PENDING.get(tid) }) else { return };
    let Some(draft) = Draft::take() else { return };
    *draft.record() = *pending;
    // Whoever removes it reports it.
    if PENDING.remove(tid).is_ok() {
        let record = draft.record();
        // SAFETY: takes no argument.
        record.returned = unsafe { bpf_ktime_get_boot_ns() };
        let error = if result < 0 { -result } else { 0 };
        record.errno = if RESTART.contains(&error) { EINTR } else { error } as u16;
        record.flags |= RETURNED;
        if let Ok(from) = file.socket().and_then(|socket| connect::source(&socket)) {
            record.src = from.octets;
            record.src_port = from.port;
        }
        report::once(draft);
    }
    draft.release();
}
