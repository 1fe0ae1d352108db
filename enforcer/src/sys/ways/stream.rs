//! TCP, and MPTCP.

use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use super::calls::{self, Address, checked, compatible, family_of, mapped, nat64, six_to_four, whole};
use super::elsewhere;
use super::world::LOOPBACK;

pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// Of struct sockaddr_storage.
const LONGEST: usize = 128;
const SIN6_LEN_RFC2133: usize = 24;

pub(super) fn connect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::connect_and_send(&tcp(family_of(to))?, &Address::new(to), data)
}

pub(super) fn connect_mapped(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::connect_and_send(&tcp(libc::AF_INET6)?, &Address::mapped(to), data)
}

pub(super) fn connect_mptcp(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = calls::socket(family_of(to), libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    calls::set_patience(&socket, CONNECT)?;
    calls::connect_and_send(&socket, &Address::new(to), data)
}

pub(super) fn connect_nonblocking(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = calls::socket(family_of(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    connect_unwaited(&socket, to)?;
    calls::finish_connect(&socket, CONNECT)?;
    calls::send(&socket, data)
}

pub(super) fn fast_open(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::sendto(&tcp(family_of(to))?, data, libc::MSG_FASTOPEN, &Address::new(to))
}

pub(super) fn fast_open_mapped(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::sendto(&tcp(libc::AF_INET6)?, data, libc::MSG_FASTOPEN, &Address::mapped(to))
}

pub(super) fn fast_open_sendmsg(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::sendmsg(&tcp(family_of(to))?, data, libc::MSG_FASTOPEN, &Address::new(to))
}

pub(super) fn connect_nat64(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect(SocketAddr::new(nat64(to.ip()).into(), to.port()), data)
}

pub(super) fn connect_compatible(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect(SocketAddr::new(compatible(to.ip()).into(), to.port()), data)
}

pub(super) fn connect_six_to_four(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect(SocketAddr::new(six_to_four(to.ip()).into(), to.port()), data)
}

/// It does not matter for an address that is not of the link.
pub(super) fn connect_scoped(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect(SocketAddrV6::new(mapped(to.ip()), to.port(), 0, LOOPBACK).into(), data)
}

pub(super) fn connect_long_address(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::connect_and_send(&tcp(family_of(to))?, &Address::new(to).with_length(LONGEST), data)
}

/// Before RFC 2553 it had no scope id.
pub(super) fn connect_short_address(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::connect_and_send(&tcp(family_of(to))?, &Address::new(to).with_length(SIN6_LEN_RFC2133), data)
}

/// Whatever the first connect came to, the socket is as new after the second.
pub(super) fn reconnect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = calls::socket(family_of(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    let _ = calls::connect(&socket, &Address::new(elsewhere(to)));
    calls::connect(&socket, &Address::new(to).with_family(libc::AF_UNSPEC))?;
    connect_unwaited(&socket, to)?;
    calls::finish_connect(&socket, CONNECT)?;
    calls::send(&socket, data)
}

/// From a file. What the connect says is not listened to.
pub(super) fn sendfile(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    unheeded(to, |socket| {
        let file = rustix::fs::memfd_create("way", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::io::write(&file, data)?;
        let mut offset = 0;
        // SAFETY: the offset is valid for reading and writing.
        let sent =
            unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut offset, data.len()) };
        whole(checked(sent)?, data.len())
    })
}

/// From a pipe, likewise.
pub(super) fn splice(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    unheeded(to, |socket| {
        let (read, write) = rustix::pipe::pipe()?;
        rustix::io::write(&write, data)?;
        let flags = rustix::pipe::SpliceFlags::empty();
        let sent = rustix::pipe::splice(&read, None, socket, None, data.len(), flags)?;
        whole(sent as isize, data.len())
    })
}

/// The connect's error, if it had one, however the sending went.
fn unheeded(to: SocketAddr, send: impl FnOnce(&OwnedFd) -> io::Result<()>) -> io::Result<()> {
    let socket = calls::socket(family_of(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    let connected = connect_unwaited(&socket, to).and_then(|()| calls::finish_connect(&socket, CONNECT));
    let sent = send(&socket);
    connected.and(sent)
}

fn connect_unwaited(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    match calls::connect(socket, &Address::new(to)) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

/// `connect` only notes the address; the first write sends SYN and data.
pub(super) fn fast_open_connect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = tcp(family_of(to))?;
    calls::set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)?;
    calls::connect_and_send(&socket, &Address::new(to), data)
}

pub(super) fn open(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = tcp(family_of(to))?;
    calls::connect(&socket, &Address::new(to))?;
    Ok(socket)
}

pub(super) fn tcp(family: libc::c_int) -> io::Result<OwnedFd> {
    let socket = calls::socket(family, libc::SOCK_STREAM, 0)?;
    calls::set_patience(&socket, CONNECT)?;
    Ok(socket)
}
