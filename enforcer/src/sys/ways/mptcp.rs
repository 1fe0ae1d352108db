//! MPTCP: the peer, which is allowed, names a further address of its own, and the kernel connects to that by itself.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::SockProtocol;

use super::calls::{self, Address, checked};
use super::elsewhere;
use super::stream::CONNECT;
use crate::sys::netlink::{Netlink, attribute, find};

/// linux/genetlink.h, linux/mptcp.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const ADD_ADDR: u8 = 1;
const FLUSH_ADDRS: u8 = 4;
const SET_LIMITS: u8 = 5;
const ATTR_ADDR: u16 = 1;
const ATTR_RCV_ADD_ADDRS: u16 = 2;
const ATTR_SUBFLOWS: u16 = 3;
const ADDR_FAMILY: u16 = 1;
const ADDR_ID: u16 = 2;
const ADDR_V4: u16 = 3;
const ADDR_FLAGS: u16 = 6;
const NESTED: u16 = 0x8000;
const SIGNAL: u32 = 1;
const SOL_MPTCP: libc::c_int = 284;
const MPTCP_INFO: libc::c_int = 1;
/// In struct mptcp_info: addresses of the peer that were taken up.
const ADD_ADDR_ACCEPTED: usize = 2;

const POLL: Duration = Duration::from_millis(5);
const POLLS: u32 = 200;

/// The data goes to nobody: what is looked for is the kernel's connect.
pub(super) fn subflow(to: SocketAddr, _data: &[u8]) -> io::Result<()> {
    announce(to.ip())?;
    let peer = SocketAddr::new(elsewhere(to).ip(), to.port());
    let listener = calls::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    rustix::net::bind(&listener, &peer)?;
    rustix::net::listen(&listener, 1)?;
    let client = calls::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    calls::set_patience(&client, CONNECT)?;
    calls::connect_and_send(&client, &Address::new(peer), b"x")?;
    let server = rustix::net::accept(&listener)?;
    let mut byte = [0];
    rustix::io::read(&server, &mut byte)?;
    rustix::io::write(&server, &byte)?;
    let taken_up = |_| {
        std::thread::sleep(POLL);
        accepted(&client)
    };
    let taken_up = (0..POLLS).map(taken_up).find(|taken_up| !matches!(taken_up, Ok(false)));
    // The kernel connects while there is a connection: it stays as long as this process.
    std::mem::forget([listener, client, server]);
    match taken_up {
        Some(Err(error)) => Err(error),
        Some(Ok(_)) => Ok(()),
        None => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Whether the client has taken up an address.
fn accepted(client: &OwnedFd) -> io::Result<bool> {
    let mut info = [0u8; 256];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the buffer is valid for its length.
    let done = unsafe {
        let place = info.as_mut_ptr().cast();
        libc::getsockopt(client.as_raw_fd(), SOL_MPTCP, MPTCP_INFO, place, &raw mut length)
    };
    checked(done as isize)?;
    Ok(info[ADD_ADDR_ACCEPTED] > 0)
}

/// Every MPTCP server of this network namespace names the address, and every client takes it up.
fn announce(ip: IpAddr) -> io::Result<()> {
    let IpAddr::V4(v4) = ip else { return Err(io::ErrorKind::Unsupported.into()) };
    let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
    let mut family = None;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"mptcp_pm\0");
    netlink.ask(GENL_ID_CTRL, 0, &[&[CTRL_CMD_GETFAMILY, 1, 0, 0][..], &name].concat(), |body| {
        let id = body.get(4..).and_then(|attributes| find(attributes, CTRL_ATTR_FAMILY_ID));
        family = family.or(id.and_then(|id| id.first_chunk().map(|id| u16::from_ne_bytes(*id))));
    })?;
    let family = family.ok_or(io::ErrorKind::Unsupported)?;
    let two = 2u32.to_ne_bytes();
    let limits = [attribute(ATTR_RCV_ADD_ADDRS, &two), attribute(ATTR_SUBFLOWS, &two)].concat();
    netlink.ask(family, 0, &[&[SET_LIMITS, 1, 0, 0][..], &limits].concat(), |_| ())?;
    let endpoint = [
        attribute(ADDR_FAMILY, &(libc::AF_INET as u16).to_ne_bytes()),
        attribute(ADDR_ID, &[77]),
        attribute(ADDR_V4, &v4.octets()),
        attribute(ADDR_FLAGS, &SIGNAL.to_ne_bytes()),
    ];
    let endpoint = attribute(ATTR_ADDR | NESTED, &endpoint.concat());
    // What an attempt before this one announced.
    netlink.ask(family, 0, &[FLUSH_ADDRS, 1, 0, 0], |_| ())?;
    netlink.ask(family, 0, &[&[ADD_ADDR, 1, 0, 0][..], &endpoint].concat(), |_| ())
}
