//! The last look at what leaves: packets for denied addresses of which no hook saw the beginning. Raw sockets where there
//! are cgroup hooks only, connects of the kernel's own, subflows, a SYN that is sent again after its address was denied.
//!
//! Cheap, because nearly everything has been decided before: what an established connection sends is left alone (it was open
//! before its address was denied, or is allowed), and so are datagrams, each of which passes a hook.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST, bpf_sock},
    helpers::{bpf_ktime_get_boot_ns, bpf_sk_fullsock},
};
use enforcer_common::{
    Addr, Decision, Verdict,
    belief::mix,
    counter::Counter,
    event::{AF_INET, AF_INET6, KIND_CONNECT, Layer},
    kernel::{TCP_CONNECT, UDP_CONNECT},
    verdict::CANARY_RULE,
};

use crate::{
    belief::peer,
    connect::{Destination, look_up_for_all},
    draft::Draft,
    facts,
    kernel::{Sock, egress_wanted, is_event, lsm_decides, only_audits},
    maps::{REFUSED, count, count_caught},
    packet::{NotDns, UDP, field, socket_cookie},
    report::{self, next_sequence},
};

/// States of a socket: a connection is being opened, by TCP, SCTP or DCCP; there is none.
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const CLOSE: u32 = 7;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const SCTP: u32 = 132;

/// False: the packet must not leave.
#[inline(always)]
pub fn passes(skb: *mut __sk_buff) -> bool {
    if !egress_wanted() {
        return true;
    }
    // SAFETY: a field of the context, null or a socket of which the state may be read.
    let (sk, state) = unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return true;
        }
        (sk, (*sk).state)
    };
    let settled = state != SYN_SENT && state != CLOSE;
    // No cgroup hook sees a raw socket connect, and then its packets look like those of a connection.
    let unseen = state == ESTABLISHED && !lsm_decides();
    (settled && !unseen) || looked_at(skb, sk, state)
}

#[inline(never)]
fn looked_at(skb: *mut __sk_buff, sk: *mut bpf_sock, state: u32) -> bool {
    // SAFETY: a socket, as the caller found out.
    let full = unsafe { bpf_sk_fullsock(sk) };
    if full.is_null() || settled(full, state) {
        return true;
    }
    let opening = state == SYN_SENT;
    let sock = Sock::untyped(full);
    if !opening && !sock.has_file().unwrap_or(false) {
        return true;
    }
    let Ok(to) = destination(skb, opening) else { return true };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // Who sends is not known here, so conditional rules, and the default, are left to the hooks.
    let Decision { verdict, rule } = look_up_for_all(&to, now);
    if verdict != Verdict::Deny {
        return true;
    }
    if rule == CANARY_RULE {
        count_caught(Layer::Egress);
        return false;
    }
    let verdict = if only_audits() { Verdict::Audit } else { verdict };
    if verdict == Verdict::Deny {
        count(Counter::PacketsRefused);
    }
    let (high, low) = {
        let key = u128::from_ne_bytes(to.octets);
        ((key >> 64) as u64, key as u64)
    };
    let flow = mix(mix(mix(socket_cookie(skb), high), low), to.port.into());
    if REFUSED.insert(flow, now, BPF_NOEXIST.into()).is_ok() && report::wanted(verdict, true) {
        // SAFETY: fields of a full socket.
        let (kind, protocol) = unsafe { ((*full).type_, (*full).protocol) };
        tell(&to, &sock, Decision { verdict, rule }, kind as u16, protocol as u16, now);
    }
    verdict != Verdict::Deny
}

/// Whether what this socket sends was decided before. A function of its own, so that the verifier forgets which kind of
/// socket it was.
#[inline(never)]
fn settled(full: *mut bpf_sock, state: u32) -> bool {
    // SAFETY: fields of a full socket, as the caller found out.
    let (kind, protocol) = unsafe { ((*full).type_, (*full).protocol) };
    match state {
        SYN_SENT => false,
        // A closed connection's last words, and what passed a hook as a datagram. SCTP calls itself closed while it opens
        // an association, and has ways to do so that pass no hook.
        CLOSE => (kind == SOCK_STREAM && protocol != SCTP) || (kind == SOCK_DGRAM && protocol == UDP.into()),
        _ => kind != SOCK_RAW,
    }
}

/// As the application wrote it, if it opened a connection; else as the packet has it.
#[inline(always)]
fn destination(skb: *mut __sk_buff, opening: bool) -> Result<Destination, NotDns> {
    let [first]: [u8; 1] = field(skb, 0)?;
    let v4 = first >> 4 == 4;
    let family = if v4 { AF_INET } else { AF_INET6 };
    if opening {
        return Ok(Destination { octets: peer(skb), port: crate::packet::connected_to(skb), family });
    }
    let octets = if v4 { Addr::from_v4(field(skb, 16)?).octets() } else { field(skb, 24)? };
    Ok(Destination { octets, port: 0, family })
}

/// What the packet's socket tells. Whose turn it is on this CPU has nothing to do with it: who sent it is not known.
#[inline(always)]
fn tell(to: &Destination, sock: &Sock, decision: Decision, kind: u16, protocol: u16, now: u64) {
    let stream = kind == SOCK_STREAM as u16;
    if !is_event(if stream { TCP_CONNECT } else { UDP_CONNECT }) {
        return;
    }
    let sequence = next_sequence();
    let Some(draft) = Draft::take() else {
        count(Counter::LostEvents);
        return;
    };
    let record = draft.record();
    facts::forget(record);
    record.kind = KIND_CONNECT;
    record.rule = decision.rule;
    record.sequence = sequence;
    record.time = now;
    record.dst = to.octets;
    record.src = [0; 16];
    record.net_namespace = sock.namespaces().map_or(0, |(net, _)| net);
    record.uid = sock.uid().unwrap_or(u32::MAX);
    record.dst_port = to.port;
    record.src_port = 0;
    record.family = to.family;
    record.sock_type = kind;
    record.protocol = protocol;
    record.verdict = decision.verdict as u8;
    record.layer = Layer::Egress as u8;
    if !draft.submit() {
        count(Counter::LostEvents);
    }
    draft.release();
}
