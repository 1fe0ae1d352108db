//! Every way to the network that a program has, one system call each, with the error that it gave.
//!
//! Plain libc: several of these (an `AF_INET` address on an `AF_INET6` socket, `AF_UNSPEC`, Fast Open) are
//! what a safe wrapper exists to prevent.

mod datagram;
mod stream;
mod sys;
mod uring;

use std::io;
use std::net::SocketAddr;

pub use sys::set_option;

/// Sends `data` to `to`. `Ok` means that the kernel accepted all of it.
pub type Attempt = fn(to: SocketAddr, data: &[u8]) -> io::Result<()>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub name: &'static str,
    /// What kind of address it is for.
    pub family: Family,
    pub attempt: Attempt,
}

/// Each is refused for a denied address, or enforcement has a hole.
pub const WAYS: &[Way] = &[
    v4("tcp_v4", stream::connect),
    v6("tcp_v6", stream::connect),
    v4("tcp_nonblocking", stream::connect_nonblocking),
    v4("tcp_v4_mapped", stream::connect_mapped),
    v4("mptcp_v4", stream::connect_mptcp),
    v4("fast_open", stream::fast_open),
    v6("fast_open_v6", stream::fast_open),
    v4("fast_open_mapped", stream::fast_open_mapped),
    v4("fast_open_sendmsg", stream::fast_open_sendmsg),
    v4("fast_open_connect", stream::fast_open_connect),
    v4("udp_connected", datagram::connect),
    v6("udp_connected_v6", datagram::connect),
    v4("udp_connected_mapped", datagram::connect_mapped),
    v4("udp_connected_v4_on_v6_socket", datagram::connect_v4_on_v6_socket),
    v4("udp_unconnected", datagram::sendto),
    v6("udp_unconnected_v6", datagram::sendto),
    v4("udp_sendmsg", datagram::sendmsg),
    v4("udp_sendmmsg", datagram::sendmmsg),
    v4("udp_mapped", datagram::sendto_mapped),
    v4("udp_v4_on_v6_socket", datagram::sendto_v4_on_v6_socket),
    v4("udp_unspec", datagram::sendto_unspec),
    v4("udp_connected_elsewhere", datagram::sendto_while_connected_elsewhere),
    v4("io_uring_connect", uring::connect),
    v4("io_uring_connect_worker", uring::connect_worker),
    v4("io_uring_sendmsg", uring::sendmsg),
];

const fn v4(name: &'static str, attempt: Attempt) -> Way {
    Way { name, family: Family::V4, attempt }
}

const fn v6(name: &'static str, attempt: Attempt) -> Way {
    Way { name, family: Family::V6, attempt }
}

pub fn way(name: &str) -> Option<&'static Way> {
    WAYS.iter().find(|way| way.name == name)
}
