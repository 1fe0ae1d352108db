//! Headers of a packet from port 53. IP options and IPv6 extension headers hide nothing; fragments were put
//! together before.

use core::{hint::black_box, mem::MaybeUninit, ops::ControlFlow};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
};
use enforcer_common::{
    Entry,
    answer::Scratch,
    event::{AnswerRecord, KIND_ANSWER},
    repeat::Step,
};

use crate::{kernel::one_socket, tables::repeat};

pub const DNS: u16 = 53;
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
const EXTENSION_HEADERS: u32 = 32;

/// A packet whose headers are not what they claim, or not DNS. The kernel decides about the packet itself.
pub struct NotDns;

/// What is known about the packet at hand. One a CPU, in map memory: what the verifier forgets, it need not
/// follow along every way through the program.
#[repr(C)]
pub struct Work {
    /// Not 0 while a packet is being handled.
    pub busy: u32,
    /// Of the payload.
    pub offset: u32,
    /// Of the payload.
    pub len: u32,
    pub protocol: u32,
    /// Why the answer is not believed: a `Doubt`, or `NONE`.
    pub doubt: u64,
    /// In which place of its bucket the question stands.
    pub way: u64,
    /// The socket (`struct sock`) that the packet is for. Through memory, because the verifier allows no arithmetic with
    /// what it knows to be one.
    pub sock: u64,
    /// Of the whole message; see `heard`.
    pub digest: u64,
    /// Not 0: the addresses of names that no rule refuses are to be known.
    pub shared: u64,
    /// What the copy for user space begins with.
    pub record: AnswerRecord,
    pub scratch: Scratch,
    /// What is entered about an address.
    pub entry: Entry,
}

/// A packet and what is known about it.
pub struct Packet<'a> {
    pub skb: *mut __sk_buff,
    pub work: &'a mut Work,
}

impl Packet<'_> {
    /// Fills `work` but for the scratch.
    #[inline(always)]
    pub fn read_headers(&mut self) -> Result<(), NotDns> {
        match self.byte(0)? >> 4 {
            4 => self.ipv4()?,
            6 => self.ipv6()?,
            _ => return Err(NotDns),
        }
        let at = self.work.offset;
        let ports: [u8; 4] = self.field(at)?;
        let [from, to] = [[ports[0], ports[1]], [ports[2], ports[3]]].map(u16::from_be_bytes);
        if from != DNS {
            return Err(NotDns);
        }
        let record = &mut self.work.record;
        record.kind = KIND_ANSWER;
        record.reserved = [0; 4];
        record.client_port = to;
        record.protocol = self.work.protocol as u16;
        record.sequence = 0;
        record.tcp_flags = 0;
        let header = if self.work.protocol == UDP.into() {
            8
        } else if self.work.protocol == TCP.into() {
            self.work.record.sequence = u32::from_be_bytes(self.field(at + 4)?);
            let [offset, flags] = self.field(at + 12)?;
            self.work.record.tcp_flags = flags;
            u32::from(offset >> 4) * 4
        } else {
            return Err(NotDns);
        };
        let at = at + header;
        self.work.offset = at;
        // SAFETY: the context's length, which the verifier lets every program read.
        let len = unsafe { (*self.skb).len };
        self.work.len = len.saturating_sub(at);
        Ok(())
    }

    /// Neither has payload nor begins or ends a stream.
    #[inline(always)]
    pub fn says_nothing(&self) -> bool {
        self.work.len == 0 && self.work.record.tcp_flags & TCP_SYN_FIN_RST == 0
    }

    #[inline(always)]
    fn ipv4(&mut self) -> Result<(), NotDns> {
        let header: [u8; 20] = self.field(0)?;
        // The header length counts the options.
        self.work.offset = u32::from(header[0] & 0x0f) * 4;
        self.work.protocol = header[9].into();
        let [.., a, b, c, d, e, f, g, h] = header;
        self.work.record.server = mapped([a, b, c, d]);
        self.work.record.client = mapped([e, f, g, h]);
        Ok(())
    }

    #[inline(always)]
    fn ipv6(&mut self) -> Result<(), NotDns> {
        self.work.offset = 40;
        self.work.protocol = self.byte(6)?.into();
        self.work.record.server = self.field(8)?;
        self.work.record.client = self.field(24)?;
        if self.work.protocol != UDP.into() && self.work.protocol != TCP.into() {
            repeat::<ExtensionHeader, _>(EXTENSION_HEADERS, self);
        }
        Ok(())
    }

    #[inline(always)]
    fn byte(&self, offset: u32) -> Result<u8, NotDns> {
        self.field(offset).map(|[byte]: [u8; 1]| byte)
    }

    #[inline(always)]
    pub fn u16(&self, offset: u32) -> Result<u16, NotDns> {
        self.field(offset).map(u16::from_be_bytes)
    }

    #[inline(always)]
    fn field<const N: usize>(&self, offset: u32) -> Result<[u8; N], NotDns> {
        field(self.skb, offset)
    }
}

#[inline(always)]
pub fn field<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Result<[u8; N], NotDns> {
    let mut field = MaybeUninit::<[u8; N]>::uninit();
    // SAFETY: the helper checks the packet's bounds; N bytes are there.
    match unsafe { bpf_skb_load_bytes(skb.cast(), offset, field.as_mut_ptr().cast(), N as u32) } {
        // SAFETY: the helper filled it.
        0 => Ok(unsafe { field.assume_init() }),
        _ => Err(NotDns),
    }
}

/// The port that the packet's socket is connected to. 0: it is connected to none.
#[inline(always)]
pub fn connected_to(skb: *mut __sk_buff) -> u16 {
    // SAFETY: a field of the context; the kernel sets the socket before it runs this program. In network byte order,
    // in the upper half.
    u16::from_be((unsafe { (*skb).remote_port } >> 16) as u16)
}

/// What tells the packet's socket from all others.
#[inline(always)]
pub fn socket_cookie(skb: *mut __sk_buff) -> u64 {
    if one_socket() {
        return 0;
    }
    // SAFETY: the context.
    unsafe { bpf_get_socket_cookie(skb.cast()) }
}

#[inline(always)]
fn mapped(v4: [u8; 4]) -> [u8; 16] {
    enforcer_common::Addr::from_v4(v4).octets()
}

/// Steps over one extension header; breaks at the transport, or where the packet ends.
struct ExtensionHeader;

impl Step<Packet<'_>> for ExtensionHeader {
    #[inline(always)]
    fn step(packet: &mut Packet<'_>, _: u32) -> ControlFlow<()> {
        let at = packet.work.offset;
        let protocol = packet.work.protocol as u8;
        let known = matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION | AUTHENTICATION | FRAGMENT);
        let Ok([next, len]) = packet.field(at) else { return ControlFlow::Break(()) };
        if !known {
            return ControlFlow::Break(());
        }
        packet.work.offset = at
            + match protocol {
                FRAGMENT => 8,
                AUTHENTICATION => (u32::from(len) + 2) * 4,
                _ => (u32::from(len) + 1) * 8,
            };
        packet.work.protocol = next.into();
        ControlFlow::Continue(())
    }
}

/// `len` bytes of the packet; 0 < `len` <= `bound`, a power of two.
///
/// # Safety
/// `to` has room for `bound` bytes.
#[inline(always)]
pub unsafe fn load(skb: *mut __sk_buff, offset: u32, to: *mut u8, len: u32, bound: usize) -> bool {
    // The compiler must not see through this, else it drops the mask that the verifier needs to see.
    let len = (black_box(len - 1) & (bound as u32 - 1)) + 1;
    // SAFETY: the helper checks the packet's bounds, the mask keeps the buffer's.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), len) == 0 }
}
