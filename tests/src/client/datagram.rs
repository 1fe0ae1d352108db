//! UDP: connected, and each way to name the destination with the data.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use super::sys::{self, Address, family_of};

/// Loopback is never denied, so that connecting to it always works. Nobody listens on the discard port.
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9);

pub(super) fn connect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect_and_send(&udp(family_of(to))?, &Address::new(to), data)
}

pub(super) fn connect_mapped(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect_and_send(&udp(libc::AF_INET6)?, &Address::mapped(to), data)
}

/// An `AF_INET` address on an `AF_INET6` socket: the kernel goes by the address's family.
pub(super) fn connect_v4_on_v6_socket(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect_and_send(&udp(libc::AF_INET6)?, &Address::new(to), data)
}

pub(super) fn sendto(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    sys::sendto(&udp(family_of(to))?, data, 0, &Address::new(to))
}

pub(super) fn sendmsg(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    sys::sendmsg(&udp(family_of(to))?, data, 0, &Address::new(to))
}

/// The kernel asks the LSM only once for repeats to one address.
pub(super) fn sendmmsg(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    sys::sendmmsg_twice(&udp(family_of(to))?, data, &Address::new(to))
}

pub(super) fn sendto_mapped(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    sys::sendto(&udp(libc::AF_INET6)?, data, 0, &Address::mapped(to))
}

pub(super) fn sendto_v4_on_v6_socket(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    sys::sendto(&udp(libc::AF_INET6)?, data, 0, &Address::new(to))
}

/// IPv4 takes an address of no family for one of its own.
pub(super) fn sendto_unspec(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    sys::sendto(&udp(libc::AF_INET)?, data, 0, &Address::new(to).with_family(libc::AF_UNSPEC))
}

/// The address given with the data beats the one that the socket is connected to.
pub(super) fn sendto_while_connected_elsewhere(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = udp(family_of(to))?;
    sys::connect(&socket, &Address::new(ELSEWHERE.into()))?;
    sys::sendto(&socket, data, 0, &Address::new(to))
}

fn udp(family: libc::c_int) -> io::Result<OwnedFd> {
    sys::socket(family, libc::SOCK_DGRAM, 0)
}

fn connect_and_send(socket: &OwnedFd, to: &Address, data: &[u8]) -> io::Result<()> {
    sys::connect(socket, to)?;
    sys::send(socket, data)
}
