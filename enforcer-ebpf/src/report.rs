//! Records for user space. Nothing here changes a verdict; every loss is counted.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use enforcer_common::{
    RuleId, Verdict,
    counter::Counter,
    event::{FIRST, KIND_CONNECT, KIND_SOCKET, Layer, RepeatKey},
    kernel::{REPORT_ALL, REPORT_DENIED, SOCKET_CONNECT, TCP_CONNECT, UDP_CONNECT},
};

use crate::{
    atomic,
    connect::{Destination, Source},
    draft::{ADDRESS, Draft},
    facts, ignore,
    kernel::{Pointer, Socket, is_event, repeats_counted, report_level},
    maps::{SEQUENCE, count},
    outcome, repeats,
};

const SOCK_STREAM: u16 = 1;
const SOCK_SEQPACKET: u16 = 5;

/// Whether a connect with this verdict is to be reported.
#[inline(always)]
pub fn wanted(verdict: Verdict, connects: bool) -> bool {
    match verdict {
        Verdict::Allow => connects && report_level() >= REPORT_ALL,
        Verdict::Deny | Verdict::Audit => report_level() >= REPORT_DENIED,
    }
}

/// A function of its own, so that its stack and that of the decision do not lie one above the other.
#[inline(never)]
pub fn connect(to: &Destination, from: &Source, layer: Layer, verdict: Verdict, rule: RuleId) {
    let has_connections = from.sock_type == SOCK_STREAM || from.sock_type == SOCK_SEQPACKET;
    if !is_event(if has_connections { TCP_CONNECT } else { UDP_CONNECT }) {
        return;
    }
    let Some(draft) = Draft::take() else {
        next_sequence();
        count(Counter::LostEvents);
        return;
    };
    let record = draft.record();
    record.kind = KIND_CONNECT;
    record.rule = rule;
    record.sequence = 0;
    // SAFETY: takes no argument.
    record.time = unsafe { bpf_ktime_get_boot_ns() };
    record.dst = to.octets;
    record.src = from.octets;
    record.dst_port = to.port;
    record.src_port = from.port;
    record.family = to.family;
    record.sock_type = from.sock_type;
    record.protocol = from.protocol;
    record.verdict = verdict as u8;
    record.layer = layer as u8;
    facts::numbers(record);
    if ignore::ignored(record, verdict) {
        count(Counter::Ignored);
    } else if !outcome::awaited(draft, layer, verdict) {
        once(draft);
    }
    draft.release();
}

/// The raw hook: `address` is a `struct sockaddr` of `len` bytes in kernel memory.
#[inline(always)]
pub fn socket(socket: &Socket, address: Pointer, len: i32) {
    if !is_event(SOCKET_CONNECT) {
        return;
    }
    let sequence = next_sequence();
    let Some(draft) = Draft::take() else {
        count(Counter::LostEvents);
        return;
    };
    let record = draft.record();
    record.kind = KIND_SOCKET;
    record.rule = 0;
    record.sequence = sequence;
    // SAFETY: takes no argument.
    record.time = unsafe { bpf_ktime_get_boot_ns() };
    record.dst = [0; 16];
    record.src = [0; 16];
    record.dst_port = 0;
    record.src_port = 0;
    record.family = 0;
    record.sock_type = socket.kind().unwrap_or(0);
    record.protocol = socket.sock().and_then(|sock| sock.protocol()).unwrap_or(0);
    record.verdict = Verdict::Allow as u8;
    record.layer = Layer::LsmConnect as u8;
    facts::numbers(record);
    facts::tail(draft);
    // The kernel takes no longer ones.
    if len > 0 && len <= ADDRESS as i32 && draft.push_kernel(address, len as u32).is_ok() {
        draft.record().address_len = len as u16;
    }
    if !draft.submit() {
        count(Counter::LostEvents);
    }
    draft.release();
}

/// Reports it, or counts it as a repeat.
#[inline(always)]
pub fn once(draft: &mut Draft) {
    let key = RepeatKey::of(draft.record());
    if repeats_counted() && repeats::counted(draft, &key) {
        return;
    }
    let sequence = next_sequence();
    draft.record().sequence = sequence;
    if draft.record().flags & FIRST != 0 {
        repeats::remember_sequence(&key, sequence);
    }
    facts::tail(draft);
    if !draft.submit() {
        count(Counter::LostEvents);
    }
}

/// Before anything can be lost, so that a missing number is a lost record.
#[inline(always)]
pub fn next_sequence() -> u64 {
    let Some(last) = SEQUENCE.get_ptr_mut(0) else { return 0 };
    // SAFETY: an aligned element of the map.
    let before = unsafe { atomic::fetch_add(last, 1) };
    before + 1
}
