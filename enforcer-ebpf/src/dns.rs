//! DNS answers on their way to a socket: recognised by source port 53 and copied to the ring.

use core::{hint::black_box, mem::MaybeUninit};

use aya_ebpf::{
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_skb_load_bytes},
    programs::SkBuffContext,
};
use enforcer_common::{
    Addr,
    counter::Counter,
    event::{AnswerRecord, KIND_ANSWER},
    limits::ANSWER_BYTES,
};

use crate::maps::{RING, count};

const DNS: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_SYN_FIN_RST: u8 = 0x07;

/// IPv6 extension headers that may stand before the transport (RFC 8200, 4): hop-by-hop, routing,
/// destination options; fragment and authentication have sizes of their own.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const EXTENSION_HEADERS: usize = 8;

/// A packet whose headers are not what they claim, or not DNS. The kernel decides about the packet itself.
struct NotDns;

/// Transport header found behind the network header.
struct Network {
    protocol: u8,
    /// Of the transport header.
    offset: usize,
    from: [u8; 16],
    to: [u8; 16],
}

/// Payload found behind the transport header.
struct Transport {
    client_port: u16,
    /// Of the payload.
    offset: usize,
    sequence: u32,
    flags: u8,
}

/// Copies the packet to the ring if it comes from port 53.
#[inline(always)]
pub fn ingress(ctx: &SkBuffContext) {
    let Ok(network) = network(ctx) else { return };
    let Ok(transport) = transport(ctx, &network) else { return };
    let payload = (ctx.len() as usize).saturating_sub(transport.offset);
    if payload == 0 && (network.protocol == UDP || transport.flags & TCP_SYN_FIN_RST == 0) {
        return;
    }
    // Three sizes, because the kernel wants the size of a ring record to be a constant.
    if payload <= SMALL {
        copy::<SMALL>(ctx, &network, &transport, payload);
    } else if payload <= MEDIUM {
        copy::<MEDIUM>(ctx, &network, &transport, payload);
    } else {
        copy::<ANSWER_BYTES>(ctx, &network, &transport, payload);
    }
}

const SMALL: usize = 1024;
const MEDIUM: usize = 8192;

#[repr(C)]
struct Answer<const N: usize> {
    header: AnswerRecord,
    payload: [u8; N],
}

#[inline(always)]
fn copy<const N: usize>(ctx: &SkBuffContext, network: &Network, transport: &Transport, payload: usize) {
    let Some(mut record) = RING.reserve_untyped::<Answer<N>>(0) else {
        count(Counter::LostAnswers);
        return;
    };
    let slot: *mut Answer<N> = MaybeUninit::as_mut_ptr(&mut record);
    let len = if payload > N { N } else { payload };
    // SAFETY: `slot` is N bytes and a header of ring memory, ours until it is submitted.
    let copied = unsafe {
        (&raw mut (*slot).header).write(AnswerRecord {
            kind: KIND_ANSWER,
            len: len as u32,
            time: bpf_ktime_get_boot_ns(),
            server: network.from,
            client: network.to,
            client_port: transport.client_port,
            protocol: network.protocol.into(),
            sequence: transport.sequence,
            tcp_flags: transport.flags,
            reserved: [0; 7],
        });
        len == 0 || load(ctx, transport.offset, (&raw mut (*slot).payload).cast(), len, N)
    };
    if copied {
        count(Counter::Answers);
        record.submit(0);
    } else {
        count(Counter::FaultPacket);
        record.discard(0);
    }
}

/// `len` bytes of the packet; 0 < `len` <= `bound`, a power of two.
///
/// # Safety
/// `to` has room for `bound` bytes.
#[inline(always)]
unsafe fn load(ctx: &SkBuffContext, offset: usize, to: *mut u8, len: usize, bound: usize) -> bool {
    // The compiler must not see through this, else it drops the mask that the verifier needs to see.
    let len = (black_box(len - 1) & (bound - 1)) + 1;
    // SAFETY: the helper checks the packet's bounds, the mask keeps the buffer's.
    unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset as u32, to.cast(), len as u32) == 0 }
}

#[inline(always)]
fn network(ctx: &SkBuffContext) -> Result<Network, NotDns> {
    match byte(ctx, 0)? >> 4 {
        4 => ipv4(ctx),
        6 => ipv6(ctx),
        _ => Err(NotDns),
    }
}

#[inline(always)]
fn ipv4(ctx: &SkBuffContext) -> Result<Network, NotDns> {
    Ok(Network {
        protocol: byte(ctx, 9)?,
        // The header length counts the options.
        offset: usize::from(byte(ctx, 0)? & 0x0f) * 4,
        from: Addr::from_v4(field(ctx, 12)?).octets(),
        to: Addr::from_v4(field(ctx, 16)?).octets(),
    })
}

#[inline(always)]
fn ipv6(ctx: &SkBuffContext) -> Result<Network, NotDns> {
    let mut protocol = byte(ctx, 6)?;
    let mut offset = 40;
    for _ in 0..EXTENSION_HEADERS {
        let size = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(byte(ctx, offset + 1)?) + 1) * 8,
            AUTHENTICATION => (usize::from(byte(ctx, offset + 1)?) + 2) * 4,
            FRAGMENT => 8,
            _ => break,
        };
        protocol = byte(ctx, offset)?;
        offset += size;
    }
    Ok(Network { protocol, offset, from: field(ctx, 8)?, to: field(ctx, 24)? })
}

#[inline(always)]
fn transport(ctx: &SkBuffContext, network: &Network) -> Result<Transport, NotDns> {
    let at = network.offset;
    if u16::from_be_bytes(field(ctx, at)?) != DNS {
        return Err(NotDns);
    }
    let client_port = u16::from_be_bytes(field(ctx, at + 2)?);
    match network.protocol {
        UDP => Ok(Transport { client_port, offset: at + 8, sequence: 0, flags: 0 }),
        TCP => {
            let flags = byte(ctx, at + 13)?;
            Ok(Transport {
                client_port,
                offset: at + usize::from(byte(ctx, at + 12)? >> 4) * 4,
                sequence: u32::from_be_bytes(field(ctx, at + 4)?),
                flags,
            })
        }
        _ => Err(NotDns),
    }
}

#[inline(always)]
fn byte(ctx: &SkBuffContext, offset: usize) -> Result<u8, NotDns> {
    ctx.load(offset).map_err(|_| NotDns)
}

#[inline(always)]
fn field<const N: usize>(ctx: &SkBuffContext, offset: usize) -> Result<[u8; N], NotDns> {
    ctx.load(offset).map_err(|_| NotDns)
}
