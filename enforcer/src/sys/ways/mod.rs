//! Every way to the network that a program has, and what it is good for: the catalogue of `enforcer coverage`, which tries
//! them on a running system, and of the tests, which run `enforcer coverage`.
//!
//! Plain libc: several of these (an `AF_INET` address on an `AF_INET6` socket, `AF_UNSPEC`, Fast Open) are
//! what a safe wrapper exists to prevent.

mod calls;
mod child;
mod datagram;
mod mptcp;
mod raw;
mod sctp;
mod stream;
mod uring;
mod world;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

pub use calls::set_option;
pub use world::{Target, World};

use super::canary::{ELSEWHERE, TARGETS};

/// Sends `data` to `to`. `Ok` means that the kernel accepted all of it.
pub type Attempt = fn(to: SocketAddr, data: &[u8]) -> io::Result<()>;
/// A socket that is connected to `to`.
pub type Open = fn(to: SocketAddr) -> io::Result<OwnedFd>;
/// Sends `data` on it.
pub type Use = fn(socket: &OwnedFd, data: &[u8]) -> io::Result<()>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug)]
pub enum Course {
    Call(Attempt),
    /// The first before the address is denied, the second after.
    Opened(Open, Use),
    /// In namespaces of its own, where it looks itself: `Ok` means that something left.
    Apart(Attempt),
}

#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub name: &'static str,
    /// For people.
    pub what: &'static str,
    /// What kind of address it is for.
    pub family: Family,
    pub course: Course,
    /// Why it is not refused, if it is not meant to be.
    pub outside: Option<&'static str>,
}

impl Way {
    pub const fn target(&self) -> IpAddr {
        match self.family {
            Family::V4 => TARGETS[0],
            Family::V6 => TARGETS[1],
        }
    }
}

/// An address that is never the denied one, of the same family. Nobody listens on the discard port.
fn elsewhere(to: SocketAddr) -> SocketAddr {
    SocketAddr::new(if to.is_ipv4() { ELSEWHERE[0] } else { ELSEWHERE[1] }, 9)
}

const OPENED: &str = "open before its address was denied: see `established`";
const PACKETS: &str = "needs CAP_NET_RAW, and passes neither hooks nor the network stack";
const HOST: &str = "means this host itself, whatever it says";

/// Each is refused for a denied address, or enforcement has a hole; but for those that say why not.
pub const WAYS: &[Way] = &[
    v4("tcp_v4", "connect, TCP", stream::connect),
    v6("tcp_v6", "connect, TCP over IPv6", stream::connect),
    v4("tcp_nonblocking", "connect without waiting", stream::connect_nonblocking),
    v4("tcp_v4_mapped", "connect to ::ffff:a.b.c.d", stream::connect_mapped),
    v4("tcp_v4_compatible", "connect to ::a.b.c.d", stream::connect_compatible),
    v4("tcp_nat64", "connect to 64:ff9b::a.b.c.d", stream::connect_nat64),
    v4("tcp_6to4", "connect to 2002:a.b.c.d::1", stream::connect_six_to_four),
    v6("tcp_scope_id", "connect, IPv6 address with a scope id", stream::connect_scoped),
    v4("tcp_long_address", "connect, address longer than it need be", stream::connect_long_address),
    v6("tcp_short_address", "connect, IPv6 address of the old length", stream::connect_short_address),
    v4("tcp_reconnected", "connect, undone with AF_UNSPEC, connect again", stream::reconnect),
    v4("mptcp_v4", "connect, MPTCP", stream::connect_mptcp),
    v4("mptcp_subflow", "a further address of an MPTCP peer", mptcp::subflow),
    v4("fast_open", "sendto with MSG_FASTOPEN", stream::fast_open),
    v6("fast_open_v6", "sendto with MSG_FASTOPEN, IPv6", stream::fast_open),
    v4("fast_open_mapped", "sendto with MSG_FASTOPEN, mapped", stream::fast_open_mapped),
    v4("fast_open_sendmsg", "sendmsg with MSG_FASTOPEN", stream::fast_open_sendmsg),
    v4("fast_open_connect", "TCP_FASTOPEN_CONNECT", stream::fast_open_connect),
    v4("sendfile", "sendfile to a socket that was not waited for", stream::sendfile),
    v4("splice", "splice to a socket that was not waited for", stream::splice),
    v4("udp_connected", "connect, UDP", datagram::connect),
    v6("udp_connected_v6", "connect, UDP over IPv6", datagram::connect),
    v4("udp_connected_mapped", "connect, UDP to ::ffff:a.b.c.d", datagram::connect_mapped),
    v4("udp_connected_v4_on_v6_socket", "AF_INET address, IPv6 socket", datagram::connect_v4_on_v6_socket),
    v4("udp_reconnected", "connect, UDP, after an AF_UNSPEC", datagram::reconnect),
    v4("udp_unconnected", "sendto, UDP", datagram::sendto),
    v6("udp_unconnected_v6", "sendto, UDP over IPv6", datagram::sendto),
    v4("udp_sendmsg", "sendmsg, UDP", datagram::sendmsg),
    v4("udp_sendmmsg", "sendmmsg, UDP, one address twice", datagram::sendmmsg),
    v4("udp_sendmmsg_second", "sendmmsg, UDP, an allowed address first", datagram::sendmmsg_second),
    v4("udp_segmented", "many datagrams in one, as QUIC sends them", datagram::segmented),
    v4("udp_mapped", "sendto, UDP to ::ffff:a.b.c.d", datagram::sendto_mapped),
    v4("udp_v4_on_v6_socket", "sendto, AF_INET address, IPv6 socket", datagram::sendto_v4_on_v6_socket),
    v4("udp_unspec", "sendto, an address of no family", datagram::sendto_unspec),
    v4("udp_connected_elsewhere", "sendto while connected elsewhere", datagram::sendto_elsewhere),
    v4("io_uring_connect", "io_uring, connect", uring::connect),
    v4("io_uring_connect_worker", "io_uring, connect by a kernel thread", uring::connect_worker),
    v4("io_uring_sendmsg", "io_uring, sendmsg", uring::sendmsg),
    v4("io_uring_send_zc", "io_uring, zero-copy send with an address", uring::send_zc),
    v4("sctp_connect", "connect, SCTP", sctp::connect),
    v4("sctp_connectx", "sctp_connectx", sctp::connectx),
    v4("sctp_sendto", "sendto, SCTP without a connect", sctp::sendto),
    v4("raw", "sendto, raw socket", raw::sendto),
    v6("raw_v6", "sendto, raw socket, IPv6", raw::sendto),
    v4("raw_connected", "connect and send, raw socket", raw::connect),
    v4("raw_header", "sendto, raw socket with an IP header of its own", raw::header),
    v4("inherited", "connect by a child, on its parent's socket", child::inherited),
    v4("passed", "connect on a socket that came over a unix socket", child::passed),
    apart("user_namespace", "from new user and network namespaces", child::in_user_namespace),
    apart("container", "from new namespaces of every kind", child::in_container),
    opened("open_tcp", "send on a TCP connection", stream::open, calls::send),
    opened("open_udp", "send on a connected UDP socket", datagram::open, calls::send),
    opened("open_inherited", "the same by a child", stream::open, child::send_inherited),
    opened("open_passed", "the same by whoever was given it", stream::open, child::send_passed),
    Way { outside: Some(PACKETS), ..v4("packet", "sendto, AF_PACKET", raw::packet) },
    Way { outside: Some(HOST), ..v4("unspecified", "sendto 0.0.0.0", datagram::sendto_unspecified) },
    Way { outside: Some(HOST), ..v6("unspecified_v6", "sendto ::", datagram::sendto_unspecified) },
];

const fn v4(name: &'static str, what: &'static str, attempt: Attempt) -> Way {
    Way { name, what, family: Family::V4, course: Course::Call(attempt), outside: None }
}

const fn v6(name: &'static str, what: &'static str, attempt: Attempt) -> Way {
    Way { family: Family::V6, ..v4(name, what, attempt) }
}

const fn apart(name: &'static str, what: &'static str, attempt: Attempt) -> Way {
    Way { course: Course::Apart(attempt), ..v4(name, what, attempt) }
}

const fn opened(name: &'static str, what: &'static str, open: Open, send: Use) -> Way {
    let course = Course::Opened(open, send);
    Way { name, what, family: Family::V4, course, outside: Some(OPENED) }
}

/// A plain call, by name.
pub fn attempt(name: &str) -> Option<Attempt> {
    WAYS.iter().find(|way| way.name == name).and_then(|way| match way.course {
        Course::Call(attempt) => Some(attempt),
        Course::Opened(..) | Course::Apart(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_a_name_of_its_own() {
        for (at, way) in WAYS.iter().enumerate() {
            assert!(WAYS[..at].iter().all(|other| other.name != way.name), "{}", way.name);
            assert!(way.target().is_ipv4() == (way.family == Family::V4) && !way.what.is_empty());
        }
    }
}
