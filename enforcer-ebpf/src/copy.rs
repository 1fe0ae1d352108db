//! Packets from port 53 on their way to user space. Every loss is counted; none changes a verdict.

use core::mem::MaybeUninit;

use enforcer_common::{answer::Outcome, counter::Counter, event::AnswerRecord, limits::ANSWER_BYTES};

use crate::{
    maps::{RING, count},
    packet::{Packet, load},
    wake,
};

const SMALL: u32 = 1024;
const MEDIUM: u32 = 8192;

#[repr(C)]
struct Answer<const N: usize> {
    header: AnswerRecord,
    payload: [u8; N],
}

/// Copies the payload to the ring, behind `work.record`. False: it is lost, and counted.
#[inline(always)]
pub fn copy(packet: &mut Packet<'_>) -> bool {
    // Three sizes, because the kernel wants the size of a ring record to be a constant.
    if packet.work.len <= SMALL {
        copy_sized::<{ SMALL as usize }>(packet)
    } else if packet.work.len <= MEDIUM {
        copy_sized::<{ MEDIUM as usize }>(packet)
    } else {
        copy_sized::<ANSWER_BYTES>(packet)
    }
}

#[inline(always)]
fn copy_sized<const N: usize>(packet: &mut Packet<'_>) -> bool {
    let Some(mut record) = RING.reserve_untyped::<Answer<N>>(0) else {
        count(Counter::LostAnswers);
        return false;
    };
    let slot: *mut Answer<N> = MaybeUninit::as_mut_ptr(&mut record);
    let len = if packet.work.len > N as u32 { N as u32 } else { packet.work.len };
    packet.work.record.len = len;
    // SAFETY: `slot` is N bytes and a header of ring memory, ours until it is submitted.
    let copied = unsafe {
        (&raw mut (*slot).header).copy_from_nonoverlapping(&raw const packet.work.record, 1);
        len == 0 || load(packet.skb, packet.work.offset, (&raw mut (*slot).payload).cast(), len, N)
    };
    if copied {
        count(Counter::Answers);
        // What the kernel could not decide, the daemon must.
        let urgent = Outcome::is_late_on_wire(packet.work.record.outcome);
        record.submit(wake::flags(packet.work.record.time, urgent));
    } else {
        count(Counter::FaultPacket);
        record.discard(0);
    }
    copied
}
