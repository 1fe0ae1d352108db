//! UDP: connected, and each way to name the destination with the data.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::calls::{self, Address, family_of};
use super::elsewhere;

pub(super) fn connect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::connect_and_send(&udp(family_of(to))?, &Address::new(to), data)
}

pub(super) fn connect_mapped(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::connect_and_send(&udp(libc::AF_INET6)?, &Address::mapped(to), data)
}

/// An `AF_INET` address on an `AF_INET6` socket: the kernel goes by the address's family.
pub(super) fn connect_v4_on_v6_socket(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::connect_and_send(&udp(libc::AF_INET6)?, &Address::new(to), data)
}

pub(super) fn sendto(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::sendto(&udp(family_of(to))?, data, 0, &Address::new(to))
}

pub(super) fn sendmsg(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::sendmsg(&udp(family_of(to))?, data, 0, &Address::new(to))
}

/// The kernel asks the LSM only once for repeats to one address.
pub(super) fn sendmmsg(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::sendmmsg(&udp(family_of(to))?, [(data, &Address::new(to)); 2])
}

/// The first message is sent; of the second the call only says that it was not.
pub(super) fn sendmmsg_second(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let (first, second) = (Address::new(elsewhere(to)), Address::new(to));
    calls::sendmmsg(&udp(family_of(to))?, [(b"x", &first), (data, &second)])
}

/// Generic segmentation: the kernel makes a datagram of each part.
pub(super) fn segmented(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = udp(family_of(to))?;
    calls::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, data.len() as libc::c_int)?;
    calls::sendto(&socket, &data.repeat(3), 0, &Address::new(to))
}

pub(super) fn reconnect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = udp(family_of(to))?;
    calls::connect(&socket, &Address::new(elsewhere(to)))?;
    calls::connect(&socket, &Address::new(to).with_family(libc::AF_UNSPEC))?;
    calls::connect_and_send(&socket, &Address::new(to), data)
}

pub(super) fn sendto_unspecified(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let ip = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let to = SocketAddr::new(ip, to.port());
    calls::sendto(&udp(family_of(to))?, data, 0, &Address::new(to))
}

pub(super) fn open(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = udp(family_of(to))?;
    calls::connect(&socket, &Address::new(to))?;
    Ok(socket)
}

pub(super) fn sendto_mapped(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::sendto(&udp(libc::AF_INET6)?, data, 0, &Address::mapped(to))
}

pub(super) fn sendto_v4_on_v6_socket(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::sendto(&udp(libc::AF_INET6)?, data, 0, &Address::new(to))
}

/// IPv4 takes an address of no family for one of its own.
pub(super) fn sendto_unspec(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::sendto(&udp(libc::AF_INET)?, data, 0, &Address::new(to).with_family(libc::AF_UNSPEC))
}

/// The address given with the data beats the one that the socket is connected to.
pub(super) fn sendto_elsewhere(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = udp(family_of(to))?;
    calls::connect(&socket, &Address::new(elsewhere(to)))?;
    calls::sendto(&socket, data, 0, &Address::new(to))
}

fn udp(family: libc::c_int) -> io::Result<OwnedFd> {
    calls::socket(family, libc::SOCK_DGRAM, 0)
}
