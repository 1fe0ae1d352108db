//! Packets from port 53 on their way to user space. Every loss is counted; none changes a verdict.

use core::mem::MaybeUninit;

use aya_ebpf::programs::SkBuffContext;
use enforcer_common::{
    answer::Outcome,
    counter::Counter,
    event::{AnswerRecord, KIND_ANSWER},
    limits::ANSWER_BYTES,
    verdict::BootNanos,
};

use crate::{
    maps::{RING, count},
    packet::{Packet, load},
};

const SMALL: usize = 1024;
const MEDIUM: usize = 8192;

#[repr(C)]
struct Answer<const N: usize> {
    header: AnswerRecord,
    payload: [u8; N],
}

/// Copies the payload to the ring, with what the kernel made of it.
#[inline(always)]
pub fn copy(ctx: &SkBuffContext, packet: &Packet, now: BootNanos, outcome: Outcome, dropped: bool) {
    let header = AnswerRecord {
        kind: KIND_ANSWER,
        len: 0,
        time: now,
        server: packet.from,
        client: packet.to,
        client_port: packet.client_port,
        protocol: packet.protocol.into(),
        sequence: packet.sequence,
        tcp_flags: packet.tcp_flags,
        outcome: outcome as u8,
        dropped: dropped.into(),
        reserved: [0; 5],
    };
    // Three sizes, because the kernel wants the size of a ring record to be a constant.
    if packet.len <= SMALL {
        copy_sized::<SMALL>(ctx, packet, header);
    } else if packet.len <= MEDIUM {
        copy_sized::<MEDIUM>(ctx, packet, header);
    } else {
        copy_sized::<ANSWER_BYTES>(ctx, packet, header);
    }
}

#[inline(always)]
fn copy_sized<const N: usize>(ctx: &SkBuffContext, packet: &Packet, header: AnswerRecord) {
    let Some(mut record) = RING.reserve_untyped::<Answer<N>>(0) else {
        count(Counter::LostAnswers);
        return;
    };
    let slot: *mut Answer<N> = MaybeUninit::as_mut_ptr(&mut record);
    let len = if packet.len > N { N } else { packet.len };
    // SAFETY: `slot` is N bytes and a header of ring memory, ours until it is submitted.
    let copied = unsafe {
        (&raw mut (*slot).header).write(AnswerRecord { len: len as u32, ..header });
        len == 0 || load(ctx, packet.offset, (&raw mut (*slot).payload).cast(), len, N)
    };
    if copied {
        count(Counter::Answers);
        record.submit(0);
    } else {
        count(Counter::FaultPacket);
        record.discard(0);
    }
}
