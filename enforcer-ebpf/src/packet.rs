//! Headers of a packet from port 53. IP options and IPv6 extension headers hide nothing; fragments were put
//! together before.

use core::hint::black_box;

use aya_ebpf::{helpers::generated::bpf_skb_load_bytes, programs::SkBuffContext};
use enforcer_common::Addr;

const DNS: u16 = 53;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
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
pub struct NotDns;

/// What the headers say.
pub struct Packet {
    pub protocol: u8,
    pub tcp_flags: u8,
    pub client_port: u16,
    pub sequence: u32,
    pub from: [u8; 16],
    pub to: [u8; 16],
    /// Of the payload.
    pub offset: usize,
    /// Of the payload.
    pub len: usize,
}

/// Transport header found behind the network header.
struct Network {
    protocol: u8,
    offset: usize,
    from: [u8; 16],
    to: [u8; 16],
}

impl Packet {
    #[inline(always)]
    pub fn read(ctx: &SkBuffContext) -> Result<Self, NotDns> {
        let network = match byte(ctx, 0)? >> 4 {
            4 => ipv4(ctx)?,
            6 => ipv6(ctx)?,
            _ => return Err(NotDns),
        };
        let at = network.offset;
        if !matches!(network.protocol, UDP | TCP) || u16::from_be_bytes(field(ctx, at)?) != DNS {
            return Err(NotDns);
        }
        let (header, sequence, tcp_flags) = if network.protocol == UDP {
            (8, 0, 0)
        } else {
            let header = usize::from(byte(ctx, at + 12)? >> 4) * 4;
            (header, u32::from_be_bytes(field(ctx, at + 4)?), byte(ctx, at + 13)?)
        };
        let offset = at + header;
        Ok(Self {
            protocol: network.protocol,
            tcp_flags,
            client_port: u16::from_be_bytes(field(ctx, at + 2)?),
            sequence,
            from: network.from,
            to: network.to,
            offset,
            len: (ctx.len() as usize).saturating_sub(offset),
        })
    }

    /// Neither has payload nor begins or ends a stream.
    #[inline(always)]
    pub fn says_nothing(&self) -> bool {
        self.len == 0 && self.tcp_flags & TCP_SYN_FIN_RST == 0
    }
}

/// `len` bytes of the packet; 0 < `len` <= `bound`, a power of two.
///
/// # Safety
/// `to` has room for `bound` bytes.
#[inline(always)]
pub unsafe fn load(ctx: &SkBuffContext, offset: usize, to: *mut u8, len: usize, bound: usize) -> bool {
    // The compiler must not see through this, else it drops the mask that the verifier needs to see.
    let len = (black_box(len - 1) & (bound - 1)) + 1;
    // SAFETY: the helper checks the packet's bounds, the mask keeps the buffer's.
    unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset as u32, to.cast(), len as u32) == 0 }
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
fn byte(ctx: &SkBuffContext, offset: usize) -> Result<u8, NotDns> {
    ctx.load(offset).map_err(|_| NotDns)
}

#[inline(always)]
pub fn field<const N: usize>(ctx: &SkBuffContext, offset: usize) -> Result<[u8; N], NotDns> {
    ctx.load(offset).map_err(|_| NotDns)
}
