//! Answers that say what was just said: the daemon need not hear them again. A busy resolver gives the same answers
//! over and over, and to tell the daemon of each costs more than everything else that is done about it.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use enforcer_common::{answer::{Outcome, mix}, counter::Counter, verdict::BootNanos};

use crate::{
    maps::count,
    packet::{Packet, TCP},
};

/// So long an answer is no news. Who counts on it is at most so much too early with the end of a binding.
const NO_NEWS: u64 = 1_000_000_000;
/// 256 KiB a CPU: of a thousand names that are asked all the time, one in sixteen shares its slot.
const SLOTS: u32 = 16_384;

#[repr(C)]
struct Heard {
    digest: u64,
    time: BootNanos,
}

/// By digest: when it was last copied. Written and read by `dns_ingress`. Two digests of one slot push each other out,
/// so the daemon is told more often, never less.
#[btf_map]
static HEARD: PerCpuArray<Heard, { SLOTS as usize }> = PerCpuArray::new();

/// What the answer in hand says, to whom, and by whom. `None`: the daemon is to be told in any case.
#[inline(always)]
fn digest(packet: &Packet<'_>) -> Option<u64> {
    let work = &packet.work;
    let decided = work.record.outcome == Outcome::Decided as u8 && work.record.dropped == 0;
    if !decided || work.len == 0 || work.protocol == TCP.into() || work.scratch.is_truncated() {
        return None;
    }
    let words = |octets: [u8; 16]| {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]) ^ u64::from_ne_bytes([i, j, k, l, m, n, o, p]).rotate_left(32)
    };
    Some(mix(mix(work.scratch.digest(), words(work.record.server)), words(work.record.client)))
}

/// Whether the daemon was just told; counted, if so.
#[inline(always)]
pub fn is_no_news(packet: &Packet<'_>) -> bool {
    let Some(digest) = digest(packet) else { return false };
    let Some(slot) = slot(digest) else { return false };
    // SAFETY: this CPU's own element; a program that interrupts this one may change it, which costs a copy at most.
    let known = unsafe { (*slot).digest == digest && packet.work.record.time.wrapping_sub((*slot).time) < NO_NEWS };
    if known {
        count(Counter::AnswersRepeated);
    }
    known
}

/// The daemon was told.
#[inline(always)]
pub fn remember(packet: &Packet<'_>) {
    let Some(digest) = digest(packet) else { return };
    let Some(slot) = slot(digest) else { return };
    // SAFETY: as above.
    unsafe { *slot = Heard { digest, time: packet.work.record.time } };
}

#[inline(always)]
fn slot(digest: u64) -> Option<*mut Heard> {
    HEARD.get_ptr_mut((digest >> 40) as u32 % SLOTS)
}
