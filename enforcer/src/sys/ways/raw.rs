//! Packets without a protocol of the kernel's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use super::calls::{self, Address, checked, family_of, whole};

/// For experiments (RFC 3692): nobody serves it.
const PROTOCOL: libc::c_int = 253;
/// In a network namespace the loopback interface is the first.
const LOOPBACK: libc::c_int = 1;

pub(super) fn sendto(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = calls::socket(family_of(to), libc::SOCK_RAW, PROTOCOL)?;
    calls::sendto(&socket, data, 0, &Address::new(portless(to)))
}

pub(super) fn connect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = calls::socket(family_of(to), libc::SOCK_RAW, PROTOCOL)?;
    calls::connect_and_send(&socket, &Address::new(portless(to)), data)
}

pub(super) fn header(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = calls::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    calls::sendto(&socket, &packet_for(to, data), 0, &Address::new(portless(to)))
}

/// Straight to the interface.
pub(super) fn packet(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = calls::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_IP as u16).to_be(),
        sll_ifindex: LOOPBACK,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let bytes = packet_for(to, data);
    // SAFETY: bytes and address are valid for their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    whole(checked(sent)?, bytes.len())
}

/// A raw IPv6 socket takes the port for a protocol.
fn portless(to: SocketAddr) -> SocketAddr {
    SocketAddr::new(to.ip(), 0)
}

/// IPv4 and UDP headers, without checksums, and the data.
fn packet_for(to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let IpAddr::V4(v4) = to.ip() else { return Vec::new() };
    let udp = 8 + data.len() as u16;
    let mut bytes = vec![0x45, 0];
    bytes.extend((20 + udp).to_be_bytes());
    bytes.extend([0, 0, 0, 0, 64, libc::IPPROTO_UDP as u8, 0, 0, 127, 0, 0, 1]);
    bytes.extend(v4.octets());
    for word in [9, to.port(), udp, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}
