//! SCTP, where the kernel has it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use super::calls::{self, Address, checked, family_of};

/// linux/sctp.h
const SCTP_SOCKOPT_CONNECTX: libc::c_int = 110;
/// Where the first packet is lost nobody says so.
const CONNECT: Duration = Duration::from_secs(1);

pub(super) fn connect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = socket(to, libc::SOCK_STREAM)?;
    calls::connect_and_send(&socket, &Address::new(to), data)
}

/// By an option of the socket: for the kernel's LSM hooks no connect.
pub(super) fn connectx(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = socket(to, libc::SOCK_STREAM)?;
    let address = Address::new(to);
    // SAFETY: the address is valid for its length.
    let done = unsafe {
        let (fd, place) = (socket.as_raw_fd(), address.as_ptr().cast());
        libc::setsockopt(fd, libc::IPPROTO_SCTP, SCTP_SOCKOPT_CONNECTX, place, address.length())
    };
    checked(done as isize)?;
    calls::send(&socket, data)
}

pub(super) fn sendto(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    calls::sendto(&socket(to, libc::SOCK_SEQPACKET)?, data, 0, &Address::new(to))
}

fn socket(to: SocketAddr, kind: libc::c_int) -> io::Result<OwnedFd> {
    let socket = calls::socket(family_of(to), kind, libc::IPPROTO_SCTP)?;
    calls::set_patience(&socket, CONNECT)?;
    Ok(socket)
}
