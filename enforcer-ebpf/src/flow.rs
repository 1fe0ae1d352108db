//! TCP connections as they are established, in and out, whoever began them and by which call.
//!
//! When that happens nobody knows whose turn it is on the CPU. So who calls `connect` (or sends the first data, or is the
//! kernel), or `listen`, is written down in the socket: what is accepted inherits it from the socket that waited for it.

use core::ptr;

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, bpf_sock, bpf_sock_ops,
    },
    helpers::{
        bpf_ktime_get_boot_ns,
        generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    },
    macros::btf_map,
};
use enforcer_common::{
    Addr, Verdict,
    counter::Counter,
    event::{AF_INET, AF_INET6, ConnectRecord, IN, KIND_FLOW, Layer, OUT},
};

use crate::{
    connect::words,
    draft::{Draft, Kept},
    facts,
    kernel::Sock,
    maps::count,
    report::next_sequence,
};

const SOCK_STREAM: u16 = 1;
const TCP: u16 = 6;

/// Socket → who it belongs to, until its connection is reported; of one that waits for connections, as long as it does.
/// Written and read by `tcp_flow`. No memory: the report lacks the process, and that is counted.
#[btf_map]
static OWNERS: Owners = Owners::new();

/// aya's own cannot be told that what is accepted inherits.
#[repr(C)]
struct Owners {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Kept,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: placeholders that the loader fills in; nobody reads them here.
unsafe impl Sync for Owners {}

impl Owners {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// Null: there is none, or no memory for one that is to be made.
    #[inline(always)]
    fn of(&self, sk: *mut bpf_sock, flags: u32) -> *mut Kept {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: a map, and a socket of the context.
        unsafe { bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), flags.into()) }.cast()
    }

    #[inline(always)]
    fn forget(&self, sk: *mut bpf_sock) {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: as above. That there is nothing to forget is no error.
        unsafe { bpf_sk_storage_delete(map, sk.cast()) };
    }
}

/// Something happened to a TCP socket.
#[inline(always)]
pub fn happened(ops: *mut bpf_sock_ops) {
    // SAFETY: fields of the context.
    let (op, sk) = unsafe { ((*ops).op, (*ops).__bindgen_anon_2.sk) };
    if sk.is_null() {
        return;
    }
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => own(sk, OUT),
        BPF_SOCK_OPS_TCP_LISTEN_CB => own(sk, IN),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => begin(ops, sk, OUT),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => begin(ops, sk, IN),
        _ => {}
    }
}

/// The current process connects, or waits for connections.
#[inline(never)]
fn own(sk: *mut bpf_sock, direction: u8) {
    let Some(draft) = Draft::take() else {
        OWNERS.forget(sk);
        count(Counter::FaultTask);
        return;
    };
    let record = draft.record();
    // SAFETY: takes no argument.
    record.time = unsafe { bpf_ktime_get_boot_ns() };
    facts::numbers(record);
    record.direction = direction;
    facts::tail(draft);
    let kept = OWNERS.of(sk, BPF_SK_STORAGE_GET_F_CREATE);
    if kept.is_null() {
        count(Counter::FaultTask);
    } else {
        // SAFETY: the socket's element; the kernel lets nobody connect or listen with it at the same time.
        draft.keep_in(unsafe { &mut *kept });
    }
    draft.release();
}

/// A connection is established. `direction`: what the kernel calls it, which is wrong where both ends began.
#[inline(always)]
fn begin(ops: *mut bpf_sock_ops, sk: *mut bpf_sock, direction: u8) {
    let kept = OWNERS.of(sk, 0);
    if kept.is_null() {
        unowned(ops, sk, direction);
        return;
    }
    // SAFETY: the socket's element, which is its own: what was inherited was copied.
    let kept = unsafe { &mut *kept };
    let direction = kept.record.direction;
    describe(ops, &mut kept.record, direction);
    if !kept.submit() {
        count(Counter::LostEvents);
    }
    OWNERS.forget(sk);
}

/// Nobody saw how its socket came about.
#[inline(always)]
fn unowned(ops: *mut bpf_sock_ops, sk: *mut bpf_sock, direction: u8) {
    let Some(draft) = Draft::take() else {
        next_sequence();
        count(Counter::LostEvents);
        return;
    };
    let sock = Sock::untyped(sk);
    let record = draft.record();
    facts::forget(record);
    record.net_namespace = sock.namespaces().map_or(0, |(net, _)| net);
    record.uid = sock.uid().unwrap_or(u32::MAX);
    record.direction = direction;
    describe(ops, record, direction);
    if !draft.submit() {
        count(Counter::LostEvents);
    }
    draft.release();
}

/// Everything but the process.
#[inline(always)]
fn describe(ops: *mut bpf_sock_ops, record: &mut ConnectRecord, direction: u8) {
    record.kind = KIND_FLOW;
    record.rule = 0;
    record.sequence = next_sequence();
    // SAFETY: takes no argument.
    record.time = unsafe { bpf_ktime_get_boot_ns() };
    record.returned = 0;
    record.sock_type = SOCK_STREAM;
    record.protocol = TCP;
    record.verdict = Verdict::Allow as u8;
    record.layer = Layer::Egress as u8;
    // SAFETY: fields of the context. The remote port is in network byte order, in the upper half of its number's bytes.
    let (local, remote) = unsafe { ((*ops).local_port as u16, u32::from_be((*ops).remote_port) as u16) };
    // SAFETY: a field of the context.
    record.family = unsafe { (*ops).family } as u16;
    let v4 = record.family == AF_INET;
    // Written at their place: on the stack each would have to be followed through every way.
    if direction == IN {
        (record.src_port, record.dst_port) = (remote, local);
        addresses(ops, v4, &mut record.dst, &mut record.src);
    } else {
        (record.src_port, record.dst_port) = (local, remote);
        addresses(ops, v4, &mut record.src, &mut record.dst);
    }
    if !v4 {
        record.family = AF_INET6;
    }
}

/// IPv4 as IPv4-mapped.
#[inline(always)]
fn addresses(ops: *mut bpf_sock_ops, v4: bool, local: &mut [u8; 16], remote: &mut [u8; 16]) {
    // SAFETY: fields of the context, each loaded by itself, as the verifier wants it.
    unsafe {
        if v4 {
            *local = Addr::from_v4((*ops).local_ip4.to_ne_bytes()).octets();
            *remote = Addr::from_v4((*ops).remote_ip4.to_ne_bytes()).octets();
            return;
        }
        let octets = |field: *const [u32; 4]| {
            let field = field.cast::<u32>();
            words(
                field.read_volatile(),
                field.add(1).read_volatile(),
                field.add(2).read_volatile(),
                field.add(3).read_volatile(),
            )
        };
        *local = octets(&raw const (*ops).local_ip6);
        *remote = octets(&raw const (*ops).remote_ip6);
    }
}
