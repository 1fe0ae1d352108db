//! Answers that were just heard, byte for byte: a busy resolver gives the same ones over and over. What no rule names is
//! not matched again, and the daemon need not be told again, which would cost more than everything else that is done.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use enforcer_common::{
    answer::Outcome,
    kernel::Control,
    name::{SuffixHash, Tables as _},
    verdict::BootNanos,
};

use crate::{
    packet::{Packet, TCP, Work},
    tables::Generation,
};

/// So long an answer is no news. Who counts on it is at most so much too early with the end of a binding.
const NO_NEWS: u64 = 1_000_000_000;
/// 384 KiB a CPU: of a thousand names that are asked all the time, one in sixteen shares its slot.
const SLOTS: u32 = 16_384;

#[repr(C)]
struct Heard {
    digest: u64,
    time: BootNanos,
    /// A rule names something in it: its addresses are to be entered each time.
    matched: u64,
}

/// By digest. Written and read by `dns_ingress`. Two digests of one slot push each other out, so answers are matched
/// and the daemon is told more often, never less.
#[btf_map]
static HEARD: PerCpuArray<Heard, { SLOTS as usize }> = PerCpuArray::new();

/// What the daemon is to be told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing, and no rule names anything in the answer.
    Nothing,
    /// Nothing.
    Claims,
    All,
}

/// Fills in `work.digest`, of the message in the scratch: what it says, to whom, and by whom, to these tables. 0: it
/// is always news.
#[inline(always)]
pub fn digest(packet: &mut Packet<'_>, control: Control, tables: &Generation) {
    let work = &mut packet.work;
    work.digest = 0;
    // Streams are put together by the daemon, which counts what was cut off as well.
    if work.protocol == TCP.into() || work.scratch.is_truncated() {
        return;
    }
    // Keyed: who is denied must not find an answer that is taken for another one. Tables that follow may say
    // something else about the same answer.
    let mut hash = SuffixHash::new(tables.header().key);
    hash.push(control.tables.into());
    for addr in [work.record.server, work.record.client] {
        let addr = u128::from_ne_bytes(addr);
        hash.push(addr as u64);
        hash.push((addr >> 64) as u64);
    }
    // Who asks now is news, whoever did before.
    hash.push(work.record.sender.process);
    work.digest = work.scratch.digest::<Generation>(hash);
}

#[inline(always)]
pub fn news(work: &Work) -> News {
    let Some(slot) = slot(work.digest) else { return News::All };
    // SAFETY: this CPU's own element; a program that interrupts this one has no packet in work.
    let heard = unsafe { &*slot };
    if work.digest == 0 || heard.digest != work.digest || work.record.time.wrapping_sub(heard.time) >= NO_NEWS
    {
        News::All
    } else if heard.matched != 0 {
        News::Claims
    } else {
        News::Nothing
    }
}

/// The daemon was told, and it can come to no other claims than were made.
#[inline(always)]
pub fn remember(work: &Work) {
    if work.digest == 0 || work.record.outcome != Outcome::Decided as u8 || work.record.dropped != 0 {
        return;
    }
    if let Some(slot) = slot(work.digest) {
        let matched = u64::from(!work.scratch.claimed().is_none());
        // SAFETY: as above.
        unsafe { *slot = Heard { digest: work.digest, time: work.record.time, matched } };
    }
}

#[inline(always)]
fn slot(digest: u64) -> Option<*mut Heard> {
    HEARD.get_ptr_mut((digest >> 40) as u32 % SLOTS)
}
