//! `default = "deny"`: destinations that no rule speaks of are refused, but for what a host cannot live without.
//!
//! Whoever is let in from outside is answered: an accepted TCP connection passes no connect, and a datagram may go where
//! the same socket received one from.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_get_socket_cookie},
};
use enforcer_common::{Addr, addr::is_loopback};

use crate::{
    connect::{Caller, Destination},
    maps::{HOST, PEERS},
    packet::field,
};

const DNS: u16 = 53;
const UDP: u16 = 17;

/// Who sent a datagram to which socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Peer {
    cookie: u64,
    addr: [u8; 16],
    port: u32,
    reserved: u32,
}

/// Whether the default does not apply.
#[inline(always)]
pub fn excepts(to: &Destination, caller: &impl Caller) -> bool {
    excepts_packed(&to.octets, to.port, caller.protocol(), caller.cookie()) != 0
}

/// A function of its own, for the sake of the stack.
#[inline(never)]
fn excepts_packed(octets: &[u8; 16], port: u16, protocol: u16, cookie: u64) -> u64 {
    excepted(*octets, port, protocol, cookie).into()
}

#[inline(always)]
fn excepted(octets: [u8; 16], port: u16, protocol: u16, cookie: u64) -> bool {
    if is_loopback(&octets) {
        return true;
    }
    let addr = Addr::from_v6(octets);
    let octets = addr.octets();
    // SAFETY: only whether there is an element matters, not what is in it.
    if port == DNS && unsafe { HOST.get(&octets) }.is_some() {
        return true;
    }
    if protocol != UDP {
        return false;
    }
    let peer = Peer { cookie, addr: addr.octets(), port: port.into(), reserved: 0 };
    // SAFETY: as above.
    addr.gives_leases(port) || (peer.cookie != 0 && unsafe { PEERS.get(&peer) }.is_some())
}

/// A packet is about to be delivered: if it is a datagram, its sender may be answered. One behind IPv6 extension
/// headers is not noted. A function of its own: the stack of matching has no room for what this needs.
#[inline(never)]
pub fn note(skb: *mut __sk_buff) {
    let Ok([first]) = field::<1>(skb, 0) else { return };
    let (protocol, from, at) = if first >> 4 == 4 {
        let (Ok([protocol]), Ok(from)) = (field::<1>(skb, 9), field::<4>(skb, 12)) else { return };
        (protocol, Addr::from_v4(from), u32::from(first & 0x0f) * 4)
    } else {
        let (Ok([protocol]), Ok(from)) = (field::<1>(skb, 6), field::<16>(skb, 8)) else { return };
        (protocol, Addr::from_v6(from), 40)
    };
    if u16::from(protocol) != UDP {
        return;
    }
    let Ok(port) = field::<2>(skb, at) else { return };
    // SAFETY: the context.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    let peer = Peer { cookie, addr: from.octets(), port: u16::from_be_bytes(port).into(), reserved: 0 };
    // SAFETY: only whether there is an element matters, not what is in it.
    if cookie != 0 && unsafe { PEERS.get(&peer) }.is_none() {
        // SAFETY: takes no argument.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        // Full: who was not heard or answered for longest makes room.
        let _ = PEERS.insert(&peer, &now, 0);
    }
}
