//! Questions on their way out are remembered, so that only what was asked for is believed.
//!
//! What identifies a socket's peer is taken from the socket where it is connected: address translation changes packets
//! that leave, and changes answers back.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    btf_maps::lpm_trie::Key,
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_skb_cgroup_id},
};
use enforcer_common::{
    Addr,
    addr::is_loopback,
    belief::{self, Asked, Doubt, Question, Sender, WAYS, WORDS, is_system},
};

use crate::{
    atomic,
    connect::words,
    kernel::{KernfsNode, Pointer, Sock, Task, Unreadable, host_namespaces},
    maps::{ASKED, OPENED, TRUSTED},
    packet::{DNS, NotDns, Packet, TCP, UDP, connected_to, field, load, socket_cookie},
};

const TCP_FLAGS: u32 = 13;
const TCP_SYN_ACK: u8 = 0x12;
const TCP_SYN: u8 = 0x02;
const AF_INET: u32 = 2;

/// A packet leaves.
#[inline(always)]
pub fn egress(skb: *mut __sk_buff) {
    let peer = connected_to(skb);
    // Nearly every packet leaves here, or a few lines further.
    if peer != 0 && peer != DNS {
        return;
    }
    let _ = leaving(skb, peer == DNS);
}

/// A packet of a socket that is connected to port 53, or to none. No part of the program, so that its room on the stack and
/// that of the backstop do not add up.
#[inline(never)]
fn leaving(skb: *mut __sk_buff, connected: bool) -> Result<(), NotDns> {
    let [first]: [u8; 1] = field(skb, 0)?;
    let v4 = first >> 4 == 4;
    let (at, [protocol]): (u32, [u8; 1]) =
        if v4 { (u32::from(first & 0x0f) * 4, field(skb, 9)?) } else { (40, field(skb, 6)?) };
    if protocol == TCP && connected {
        let [flags] = field(skb, at + TCP_FLAGS)?;
        if flags & TCP_SYN_ACK == TCP_SYN {
            // Who sends it once more, because nothing came, is a timer: the first one stays.
            let _ = OPENED.insert(socket_cookie(skb), sender(skb), BPF_NOEXIST.into());
        }
        return Ok(());
    }
    if protocol != UDP || !(connected || field(skb, at + 2)? == DNS.to_be_bytes()) {
        return Ok(());
    }
    let server = if connected {
        Addr::from_v6(peer(skb))
    } else if v4 {
        Addr::from_v4(field(skb, 16)?)
    } else {
        Addr::from_v6(field(skb, 24)?)
    };
    question(skb, at + 8, server)
}

/// Who sends the packet: whose turn it is. Packets leave in the turn of who sent them, unless the firewall queued them, or a
/// timer or a worker of the kernel sends them: these are seldom in the control group of the socket, and then it is not known.
#[inline(always)]
fn sender(skb: *mut __sk_buff) -> Sender {
    let task = Task::current();
    // SAFETY: the context.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    match (task.process(), task.cgroup().and_then(KernfsNode::id)) {
        (Ok((pid, started)), Ok(own)) if own == cgroup => {
            Sender { process: Sender::process(pid, started), cgroup }
        }
        _ => Sender::NONE,
    }
}

/// The address that the packet's socket is connected to.
#[inline(always)]
pub fn peer(skb: *mut __sk_buff) -> [u8; 16] {
    // SAFETY: fields of the context, each loaded by itself, as the verifier wants it.
    unsafe {
        if (*skb).family == AF_INET {
            return Addr::from_v4((*skb).remote_ip4.to_ne_bytes()).octets();
        }
        words(
            (&raw const (*skb).remote_ip6[0]).read_volatile(),
            (&raw const (*skb).remote_ip6[1]).read_volatile(),
            (&raw const (*skb).remote_ip6[2]).read_volatile(),
            (&raw const (*skb).remote_ip6[3]).read_volatile(),
        )
    }
}

/// So that the name begins at a word, and what is loaded may be as long as a power of two.
#[repr(C)]
struct Beginning {
    before: u32,
    header: [u8; HEADER],
    question: [u64; WORDS],
    rest: [u8; LOADED - HEADER - 8 * WORDS],
}

const HEADER: usize = 12;
const LOADED: usize = 128;

#[inline(always)]
fn question(skb: *mut __sk_buff, at: u32, server: Addr) -> Result<(), NotDns> {
    // SAFETY: the context's length.
    let len = unsafe { (*skb).len }.saturating_sub(at);
    if len < HEADER as u32 {
        return Err(NotDns);
    }
    let len = if len > LOADED as u32 { LOADED as u32 } else { len };
    let mut beginning = Beginning {
        before: 0,
        header: [0; HEADER],
        question: [0; WORDS],
        rest: [0; LOADED - HEADER - 8 * WORDS],
    };
    // SAFETY: so much room is behind `before`.
    let loaded = unsafe {
        let header = (&raw mut beginning).cast::<u8>().add(size_of::<u32>());
        load(skb, at, header, len, LOADED)
    };
    if !loaded {
        return Err(NotDns);
    }
    let id = u16::from_be_bytes([beginning.header[0], beginning.header[1]]);
    let hash = belief::question(&beginning.question);
    remember(skb, &Question::new(socket_cookie(skb), hash, server, id));
    Ok(())
}

/// Two CPUs that write to one place at once leave a question there that nobody asked: both answers are not believed.
#[inline(always)]
fn remember(skb: *mut __sk_buff, question: &Question) {
    // Here, where the verifier comes by once.
    let sender = sender(skb);
    let Some(bucket) = ASKED.get_ptr_mut(question.bucket()) else { return };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let mut chosen = 0;
    let mut idlest = 0;
    for way in 0..WAYS {
        // SAFETY: an element of the map; torn values only choose another place.
        let asked = unsafe { &(*bucket)[way] };
        if asked.question.is(question) {
            if asked.open != 0 && !asked.is_over(now) {
                let asked = (&raw const *asked).cast_mut();
                // SAFETY: as above. The count is changed by atomic operations only, once it is open.
                unsafe {
                    (&raw mut (*asked).time).write_volatile(now);
                    atomic::fetch_add(&raw mut (*asked).open, 1);
                }
                return;
            }
            chosen = way;
            break;
        }
        let idle = asked.idle(now);
        if idle >= idlest {
            idlest = idle;
            chosen = way;
        }
    }
    // SAFETY: as above. Closed while it is written.
    unsafe {
        let place = &raw mut (*bucket)[chosen % WAYS];
        atomic::swap(&raw mut (*place).open, 0);
        (&raw mut (*place).question).write_volatile(*question);
        (&raw mut (*place).sender).write_volatile(sender);
        (&raw mut (*place).time).write_volatile(now);
        atomic::swap(&raw mut (*place).open, 1);
    }
}

/// Of `Work::doubt`: none.
pub const NONE: u64 = u64::MAX;

/// Fills in `work.doubt`: whether somebody asked for the answer in hand. A datagram, which is in the scratch, is marked as
/// answered.
///
/// In memory: each reason would be a state of its own, in which the verifier goes through the rest of the program. And no
/// part of its caller, which has no room left on the stack for this.
#[inline(never)]
pub fn unasked(packet: &mut Packet<'_>) {
    let doubt = if packet.work.protocol != u32::from(TCP) {
        answered(packet)
    } else {
        // SAFETY: an element of the map; if it is replaced meanwhile, it may name another sender.
        match unsafe { OPENED.get(socket_cookie(packet.skb)) } {
            Some(sender) => {
                packet.work.record.sender = *sender;
                None
            }
            None => Some(Doubt::NotOpened),
        }
    };
    packet.work.doubt = doubt.map_or(NONE, |doubt| doubt as u64);
}

/// Fills in `work.doubt`, unless there is one: whether who asked may have been told anything.
#[inline(never)]
pub fn distrust(packet: &mut Packet<'_>) {
    if packet.work.doubt == NONE
        && let Some(doubt) = distrusted(packet)
    {
        packet.work.doubt = doubt as u64;
    }
}

#[inline(always)]
fn answered(packet: &mut Packet<'_>) -> Option<Doubt> {
    let scratch = &packet.work.scratch;
    let server = Addr::from_v6(packet.work.record.server);
    let question = Question::new(socket_cookie(packet.skb), scratch.question(), server, scratch.id());
    let Some(bucket) = ASKED.get_ptr_mut(question.bucket()) else { return Some(Doubt::Unasked) };
    packet.work.way = NOWHERE;
    for way in (0..WAYS).rev() {
        // SAFETY: an element of the map; a question that is being replaced is closed.
        if unsafe { (*bucket)[way].question.is(&question) } {
            packet.work.way = way as u64;
        }
    }
    // Through memory: else the verifier goes through the rest once for each place.
    // SAFETY: a field of ours.
    let way = unsafe { (&raw const packet.work.way).read_volatile() };
    if way == NOWHERE {
        return Some(Doubt::Unasked);
    }
    // SAFETY: as above.
    let asked = unsafe { &raw mut (*bucket)[way as usize % WAYS] };
    // SAFETY: as above.
    packet.work.record.sender = unsafe { (&raw const (*asked).sender).read_volatile() };
    close(asked, packet.work.record.time)
}

/// Of `Work::way`: in no place of the bucket.
const NOWHERE: u64 = u64::MAX;

#[inline(always)]
fn close(asked: *mut Asked, now: u64) -> Option<Doubt> {
    // SAFETY: an element of the map.
    unsafe {
        if (*asked).is_over(now) {
            return Some(Doubt::Late);
        }
        let open = &raw mut (*asked).open;
        let before = atomic::fetch_add(open, u64::MAX);
        // Two CPUs may bring the last one down at once; what goes below 0 is a number beyond all bounds.
        if before == 0 || before > u64::MAX / 2 {
            atomic::fetch_add(open, 1);
            return Some(Doubt::Replayed);
        }
        None
    }
}

/// Why who asked may have been told anything.
#[inline(always)]
fn distrusted(packet: &mut Packet<'_>) -> Option<Doubt> {
    let (host_net, host_user) = host_namespaces()?;
    // SAFETY: a field of the context, written to memory of our own.
    let sock = unsafe {
        let sock = &raw mut packet.work.sock;
        sock.write_volatile((*packet.skb).__bindgen_anon_2.sk as u64);
        Sock(sock.read_volatile() as Pointer)
    };
    match asker(&sock) {
        Ok((_, owner, _)) if owner != host_user => Some(Doubt::Foreign),
        Ok((_, _, uid)) if is_system(uid) => None,
        Ok((net, _, _)) => {
            let server = Addr::from_v6(packet.work.record.server);
            // What loopback means in another namespace is up to whoever may bind there.
            let trusted = TRUSTED.get(&Key::new(128, server.octets())).is_some()
                || (net == host_net && is_loopback(&packet.work.record.server));
            if trusted { None } else { Some(Doubt::Untrusted) }
        }
        Err(Unreadable) => Some(Doubt::Foreign),
    }
}

/// Network namespace, the user namespace it belongs to, and the user.
#[inline(always)]
fn asker(sock: &Sock) -> Result<(u32, u32, u32), Unreadable> {
    let (net, owner) = sock.namespaces()?;
    Ok((net, owner, sock.uid()?))
}
