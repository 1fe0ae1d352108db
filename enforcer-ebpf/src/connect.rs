//! From a hook's arguments to a verdict: canonical address → lookup → `decide()` → report.

use core::hint::black_box;

use aya_ebpf::{
    bindings::bpf_sock_addr,
    btf_maps::lpm_trie::Key,
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_get_socket_cookie},
};
use enforcer_common::{
    Addr, Decision, Entry, RuleId, Said, Verdict,
    counter::Counter,
    event::{AF_INET, AF_INET6, Layer},
    verdict::{BootNanos, CANARY_RULE, NO_RULE},
};

use crate::{
    conditions, default,
    kernel::{Message, Pointer, Socket, Unreadable, denies_by_default, only_audits, read, second_look},
    maps::{ADDRESSES, ANSWERED, NETWORKS, count, count_caught},
    report,
};

const AF_UNSPEC: u16 = 0;
const SOCK_STREAM: u16 = 1;
const MSG_FASTOPEN: u32 = 0x2000_0000;

/// sizeof(struct sockaddr_in), and SIN6_LEN_RFC2133: shorter addresses the kernel refuses itself.
const SOCKADDR_IN: i32 = 16;
const SOCKADDR_IN6: i32 = 24;
/// Of sin_port and sin6_port, sin_addr, sin6_addr.
const PORT: u32 = 2;
const ADDR4: u32 = 4;
const ADDR6: u32 = 8;

/// Where a connect goes, as the application wrote it.
pub struct Destination {
    /// IPv4 as IPv4-mapped; NAT64 not yet folded.
    pub octets: [u8; 16],
    pub port: u16,
    pub family: u16,
}

/// The connecting socket.
pub struct Source {
    pub octets: [u8; 16],
    pub port: u16,
    pub sock_type: u16,
    pub protocol: u16,
}

/// Who is asked about the connecting socket, if it matters.
pub trait Caller {
    /// 0, which no rule speaks of, if it cannot be read.
    fn protocol(&self) -> u16;
    /// 0: none, or not known.
    fn cookie(&self) -> u64;
    fn source(&self) -> Result<Source, Unreadable>;
}

impl Caller for Socket {
    #[inline(always)]
    fn protocol(&self) -> u16 {
        self.sock().and_then(|sock| sock.protocol()).unwrap_or_else(|Unreadable| {
            count(Counter::FaultSocket);
            0
        })
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        self.sock().and_then(|sock| sock.cookie()).unwrap_or(0)
    }

    #[inline(always)]
    fn source(&self) -> Result<Source, Unreadable> {
        source(self)
    }
}

/// As a cgroup hook is told of it.
struct Context {
    ctx: *const bpf_sock_addr,
    /// Of the hook: an IPv4 hook may have an IPv6 socket.
    family: u16,
    sock_type: u16,
    protocol: u16,
}

impl Caller for Context {
    #[inline(always)]
    fn protocol(&self) -> u16 {
        self.protocol
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context.
        unsafe { bpf_get_socket_cookie(self.ctx.cast_mut().cast()) }
    }

    #[inline(always)]
    fn source(&self) -> Result<Source, Unreadable> {
        // SAFETY: fields of the context's socket, which there always is; each loaded by itself, as the verifier wants it. An
        // IPv6 socket that is bound to an IPv4 address, or to none, has that as its IPv4 address, too.
        let (octets, port) = unsafe {
            let sk = (*self.ctx).__bindgen_anon_1.sk;
            let octets = if self.family == AF_INET {
                Addr::from_v4((*sk).src_ip4.to_ne_bytes()).octets()
            } else {
                words(
                    (&raw const (*sk).src_ip6[0]).read_volatile(),
                    (&raw const (*sk).src_ip6[1]).read_volatile(),
                    (&raw const (*sk).src_ip6[2]).read_volatile(),
                    (&raw const (*sk).src_ip6[3]).read_volatile(),
                )
            };
            (octets, (*sk).src_port as u16)
        };
        Ok(Source { octets, port, sock_type: self.sock_type, protocol: self.protocol })
    }
}

impl Source {
    pub const UNKNOWN: Self = Self { octets: [0; 16], port: 0, sock_type: 0, protocol: 0 };
}

/// LSM `socket_connect`.
#[inline(always)]
pub fn lsm_connect(socket: Socket, address: Pointer, len: i32) -> Verdict {
    report::socket(&socket, address, len);
    match sockaddr(address, len, false) {
        Ok(Some(to)) => judge(&to, Layer::LsmConnect, true, &socket),
        Ok(None) => Verdict::Allow,
        Err(Unreadable) => unreadable_address(),
    }
}

/// LSM `socket_sendmsg`: a message with an address of its own, which no connect announced.
#[inline(always)]
pub fn lsm_sendmsg(socket: Socket, message: Message) -> Verdict {
    match named(&socket, &message) {
        Ok(Some((to, always))) => judge(&to, Layer::LsmSendmsg, always, &socket),
        Ok(None) => Verdict::Allow,
        Err(Unreadable) => unreadable_address(),
    }
}

/// The message's destination, and whether the send is a connect (else it is reported only when refused: TCP
/// ignores an address that comes without MSG_FASTOPEN).
#[inline(always)]
fn named(socket: &Socket, message: &Message) -> Result<Option<(Destination, bool)>, Unreadable> {
    let name = message.name()?;
    if name.is_null() {
        return Ok(None);
    }
    // An IPv4 UDP or raw socket takes AF_UNSPEC for AF_INET here (udp_sendmsg, raw_sendmsg).
    let unspec_is_inet = socket.sock()?.family()? == AF_INET;
    let Some(to) = sockaddr(name, message.name_len()?, unspec_is_inet)? else { return Ok(None) };
    let connects = socket.kind()? != SOCK_STREAM || message.flags()? & MSG_FASTOPEN != 0;
    Ok(Some((to, connects)))
}

/// cgroup `connect4`/`connect6`/`sendmsg4`/`sendmsg6`: the kernel has checked the address already.
#[inline(always)]
pub fn cgroup(ctx: *const bpf_sock_addr, family: u16, layer: Layer) -> Verdict {
    // SAFETY: the verifier knows the context's fields and checks each of these loads.
    let (octets, port, sock_type, protocol) = unsafe {
        let octets = if family == AF_INET {
            Addr::from_v4((*ctx).user_ip4.to_ne_bytes()).octets()
        } else {
            let [a, b, c, d] = [
                (&raw const (*ctx).user_ip6[0]).read_volatile(),
                (&raw const (*ctx).user_ip6[1]).read_volatile(),
                (&raw const (*ctx).user_ip6[2]).read_volatile(),
                (&raw const (*ctx).user_ip6[3]).read_volatile(),
            ];
            words(a, b, c, d)
        };
        ((octets), u16::from_be((*ctx).user_port as u16), (*ctx).type_ as u16, (*ctx).protocol as u16)
    };
    let to = Destination { octets, port, family };
    judge(&to, layer, true, &Context { ctx, family, sock_type, protocol })
}

#[inline(always)]
pub fn words(a: u32, b: u32, c: u32, d: u32) -> [u8; 16] {
    let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// Looks up, decides, counts, reports. `connects`: else it is an address that the kernel may ignore.
#[inline(always)]
fn judge(to: &Destination, layer: Layer, connects: bool, caller: &impl Caller) -> Verdict {
    let (Decision { mut verdict, mut rule }, spared) = look_up(to, caller);
    if rule == CANARY_RULE {
        if matches!(verdict, Verdict::Deny) {
            count_caught(layer);
        }
        return verdict;
    }
    if rule == NO_RULE && connects && denies_by_default() && !default::excepts(to, caller) {
        verdict = Verdict::Deny;
    }
    if matches!(verdict, Verdict::Deny) && only_audits() {
        verdict = Verdict::Audit;
    }
    // What an LSM hook has let pass is counted and reported there.
    if second_look(layer) && !matches!(verdict, Verdict::Deny) {
        return verdict;
    }
    count(Counter::Connects);
    if spared != NO_RULE && rule == NO_RULE && matches!(verdict, Verdict::Allow) {
        // Let through, by the rule that would have refused it.
        count(Counter::SharedPassed);
        rule = spared;
    }
    match verdict {
        Verdict::Allow => {}
        Verdict::Deny => count(Counter::Denied),
        Verdict::Audit => count(Counter::Audited),
    }
    if report::wanted(verdict, connects) {
        let from = caller.source().unwrap_or_else(|Unreadable| {
            count(Counter::FaultSocket);
            Source::UNKNOWN
        });
        report::connect(to, &from, layer, verdict, rule);
    }
    verdict
}

#[inline(always)]
fn look_up(to: &Destination, caller: &impl Caller) -> (Decision, RuleId) {
    let key = Addr::from_v6(to.octets).octets();
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let (said, conditional) = said(&key, now);
    if now >= conditional {
        return (said.decide(), NO_RULE);
    }
    let (decision, spared) = conditions::decide(&key, now, to.port, caller.protocol());
    (said.decide().stronger(decision), spared)
}

/// What is decided about a destination whoever connects, by rules without conditions. Nothing, where one with conditions may
/// except from it.
#[inline(always)]
pub fn look_up_for_all(to: &Destination, now: BootNanos) -> Decision {
    let key = Addr::from_v6(to.octets).octets();
    let (said, conditional) = said(&key, now);
    let decision = said.decide();
    let excepted = now < conditional && decision.rule != CANARY_RULE && conditions::may_allow(&key, now);
    if excepted { Decision::DEFAULT } else { decision }
}

/// What the rules without conditions say, and until when some conditional rule may have a say.
#[inline(always)]
fn said(key: &[u8; 16], now: BootNanos) -> (Said, BootNanos) {
    let mut said = Said::NOTHING;
    let mut conditional = 0;
    let mut hear = |entry: &Entry| {
        said.hear(entry, now);
        if entry.conditional.until > conditional {
            conditional = entry.conditional.until;
        }
    };
    // SAFETY: the kernel replaces whole elements.
    if let Some(entry) = unsafe { ADDRESSES.get(key) } {
        hear(entry);
    }
    for slot in 0..2 {
        // SAFETY: elements are changed in place, word by word, each word valid with the others' old values.
        if let Some(entry) = ANSWERED.get(slot).and_then(|map| unsafe { map.get(key) }) {
            hear(entry);
        }
    }
    if let Some(entry) = NETWORKS.get(&Key::new(128, *key)) {
        hear(entry);
    }
    (said, conditional)
}

/// The one fail-open place of the connect path, counted and shown by `enforcer status`.
#[inline(always)]
fn unreadable_address() -> Verdict {
    count(Counter::FaultAddress);
    Verdict::Allow
}

/// The destination in a `struct sockaddr` of `len` bytes. `None`: not ours (another family), or so short that
/// the kernel will refuse it.
#[inline(always)]
fn sockaddr(address: Pointer, len: i32, unspec_is_inet: bool) -> Result<Option<Destination>, Unreadable> {
    if len < SOCKADDR_IN {
        return Ok(None);
    }
    let family: u16 = read(address, 0)?;
    let octets = if family == AF_INET || (family == AF_UNSPEC && unspec_is_inet) {
        mapped(read(address, ADDR4)?)
    } else if family == AF_INET6 && len >= SOCKADDR_IN6 {
        read(address, ADDR6)?
    } else {
        return Ok(None);
    };
    Ok(Some(Destination { octets, port: u16::from_be(read(address, PORT)?), family }))
}

/// IPv4-mapped, without the verifier knowing what is before the address: it would follow everything that comes after it once
/// more for IPv4.
#[inline(always)]
fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let [_, _, _, _, _, _, _, _, rest @ ..] = Addr::from_v4(v4).octets();
    let [a, b, c, d, e, f, g, h] = nothing().to_ne_bytes();
    let [i, j, k, l, m, n, o, p] = rest;
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nothing() -> u64 {
    black_box(0)
}

#[inline(always)]
pub fn source(socket: &Socket) -> Result<Source, Unreadable> {
    let sock = socket.sock()?;
    let octets =
        if sock.family()? == AF_INET6 { sock.local_v6()? } else { Addr::from_v4(sock.local_v4()?).octets() };
    Ok(Source { octets, port: sock.local_port()?, sock_type: socket.kind()?, protocol: sock.protocol()? })
}
