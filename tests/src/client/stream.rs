//! TCP, and MPTCP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::sys::{self, Address, family_of};

const CONNECT_MS: libc::c_int = 5000;

pub(super) fn connect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect_and_send(&tcp(family_of(to))?, &Address::new(to), data)
}

pub(super) fn connect_mapped(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect_and_send(&tcp(libc::AF_INET6)?, &Address::mapped(to), data)
}

pub(super) fn connect_mptcp(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = sys::socket(family_of(to), libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    connect_and_send(&socket, &Address::new(to), data)
}

pub(super) fn connect_nonblocking(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = sys::socket(family_of(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    match sys::connect(&socket, &Address::new(to)) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => other?,
    }
    sys::finish_connect(&socket, CONNECT_MS)?;
    sys::send(&socket, data)
}

pub(super) fn fast_open(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    sys::sendto(&tcp(family_of(to))?, data, libc::MSG_FASTOPEN, &Address::new(to))
}

pub(super) fn fast_open_mapped(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    sys::sendto(&tcp(libc::AF_INET6)?, data, libc::MSG_FASTOPEN, &Address::mapped(to))
}

pub(super) fn fast_open_sendmsg(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    sys::sendmsg(&tcp(family_of(to))?, data, libc::MSG_FASTOPEN, &Address::new(to))
}

/// `connect` only notes the address; the first write sends SYN and data.
pub(super) fn fast_open_connect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = tcp(family_of(to))?;
    sys::set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)?;
    connect_and_send(&socket, &Address::new(to), data)
}

fn tcp(family: libc::c_int) -> io::Result<OwnedFd> {
    sys::socket(family, libc::SOCK_STREAM, 0)
}

fn connect_and_send(socket: &OwnedFd, to: &Address, data: &[u8]) -> io::Result<()> {
    sys::connect(socket, to)?;
    sys::send(socket, data)
}
