//! `io_uring`: system calls that are not made as system calls.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{IoUring, opcode, squeue, types::Fd};

use super::calls::{self, Address, family_of};

pub(super) fn connect(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect_with(to, data, squeue::Flags::empty())
}

/// By a thread of the kernel's own making, which belongs to the process (`iou-wrk-N`).
pub(super) fn connect_worker(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    connect_with(to, data, squeue::Flags::ASYNC)
}

fn connect_with(to: SocketAddr, data: &[u8], flags: squeue::Flags) -> io::Result<()> {
    let socket = calls::socket(family_of(to), libc::SOCK_STREAM, 0)?;
    let address = Address::new(to);
    let entry = opcode::Connect::new(fd(&socket), address.as_ptr(), address.length()).build().flags(flags);
    // SAFETY: socket and address live until the operation is complete.
    unsafe { complete(&entry) }?;
    calls::send(&socket, data)
}

pub(super) fn sendmsg(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = calls::socket(family_of(to), libc::SOCK_DGRAM, 0)?;
    let address = Address::new(to);
    let mut part = calls::part(data);
    let message = calls::message(&mut part, &address);
    let entry = opcode::SendMsg::new(fd(&socket), &raw const message).build();
    // SAFETY: socket, address, data and message live until the operation is complete.
    let sent = unsafe { complete(&entry) }?;
    calls::whole(sent as isize, data.len())
}

/// Without copying: the address stands in the entry, not in a message.
pub(super) fn send_zc(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let socket = calls::socket(family_of(to), libc::SOCK_DGRAM, 0)?;
    let address = Address::new(to);
    let entry = opcode::SendZc::new(fd(&socket), data.as_ptr(), data.len() as u32)
        .dest_addr(address.as_ptr())
        .dest_addr_len(address.length())
        .build();
    // SAFETY: socket, address and data live until the operation is complete; on loopback the packet's memory is copied.
    let sent = unsafe { complete(&entry) }?;
    calls::whole(sent as isize, data.len())
}

fn fd(socket: &OwnedFd) -> Fd {
    Fd(socket.as_raw_fd())
}

/// Submits one operation and waits for its result.
///
/// # Safety
/// Everything that the entry points to outlives the call.
unsafe fn complete(entry: &squeue::Entry) -> io::Result<i32> {
    // Where it is forbidden altogether it is no way.
    let mut ring = IoUring::new(2).map_err(|_| io::Error::from_raw_os_error(libc::ENOSYS))?;
    // SAFETY: the caller's promise; the ring is waited for below.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().ok_or_else(|| io::Error::other("no completion"))?.result();
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
