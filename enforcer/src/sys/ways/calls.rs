//! The system calls, with their errors.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use rustix::net::sockopt;

/// A socket address as the kernel reads it, whatever its family claims to be.
#[derive(Clone, Copy)]
pub(super) struct Address {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl Address {
    pub(super) fn new(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self::of(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Self::of(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }

    /// `203.0.113.1` as `::ffff:203.0.113.1`.
    pub(super) fn mapped(address: SocketAddr) -> Self {
        Self::new(SocketAddr::new(IpAddr::V6(mapped(address.ip())), address.port()))
    }

    /// Cut off there, or with nothing behind it.
    pub(super) fn with_length(mut self, length: usize) -> Self {
        self.length = length.min(size_of::<libc::sockaddr_storage>()) as libc::socklen_t;
        self
    }

    /// The same bytes under another family.
    pub(super) fn with_family(mut self, family: libc::c_int) -> Self {
        self.storage.ss_family = family as libc::sa_family_t;
        self
    }

    fn of<T: Copy>(address: T) -> Self {
        const { assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>()) };
        // SAFETY: sockaddr_storage is plain bytes; all zeroes is a value of it.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        // SAFETY: the storage is large enough for T (asserted) and aligned for every socket address.
        unsafe { ptr::from_mut(&mut storage).cast::<T>().write(address) };
        Self { storage, length: size_of::<T>() as libc::socklen_t }
    }

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        ptr::from_ref(&self.storage).cast()
    }

    pub(super) fn length(&self) -> libc::socklen_t {
        self.length
    }
}

/// `64:ff9b::a.b.c.d` (RFC 6052).
pub(super) fn nat64(address: IpAddr) -> Ipv6Addr {
    let [a, b] = end(address);
    Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b)
}

/// `::a.b.c.d` (RFC 4291, 2.5.5.1).
pub(super) fn compatible(address: IpAddr) -> Ipv6Addr {
    let [a, b] = end(address);
    Ipv6Addr::new(0, 0, 0, 0, 0, 0, a, b)
}

/// Some host of the site behind it (RFC 3056).
pub(super) fn six_to_four(address: IpAddr) -> Ipv6Addr {
    let [a, b] = end(address);
    Ipv6Addr::new(0x2002, a, b, 0, 0, 0, 0, 1)
}

fn end(address: IpAddr) -> [u16; 2] {
    mapped(address).segments().last_chunk().copied().unwrap_or_default()
}

pub(super) fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

pub(super) fn family_of(address: SocketAddr) -> libc::c_int {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

pub(super) fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = checked(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) } as isize)?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

pub(super) fn connect(socket: &OwnedFd, to: &Address) -> io::Result<()> {
    // SAFETY: the address is valid for its length.
    checked(unsafe { libc::connect(socket.as_raw_fd(), to.as_ptr(), to.length()) } as isize).map(drop)
}

pub(super) fn send(socket: &OwnedFd, data: &[u8]) -> io::Result<()> {
    // SAFETY: the data is valid for its length.
    let sent =
        unsafe { libc::send(socket.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL) };
    whole(checked(sent)?, data.len())
}

pub(super) fn connect_and_send(socket: &OwnedFd, to: &Address, data: &[u8]) -> io::Result<()> {
    connect(socket, to)?;
    send(socket, data)
}

pub(super) fn sendto(socket: &OwnedFd, data: &[u8], flags: libc::c_int, to: &Address) -> io::Result<()> {
    // SAFETY: data and address are valid for their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            flags | libc::MSG_NOSIGNAL,
            to.as_ptr(),
            to.length(),
        )
    };
    whole(checked(sent)?, data.len())
}

pub(super) fn sendmsg(socket: &OwnedFd, data: &[u8], flags: libc::c_int, to: &Address) -> io::Result<()> {
    let mut part = part(data);
    let message = message(&mut part, to);
    // SAFETY: the message refers to data and address, which outlive the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags | libc::MSG_NOSIGNAL) };
    whole(checked(sent)?, data.len())
}

/// Two messages in one call, each with where it goes.
pub(super) fn sendmmsg(socket: &OwnedFd, what: [(&[u8], &Address); 2]) -> io::Result<()> {
    let mut parts = what.map(|(data, _)| part(data));
    let [first, second] = &mut parts;
    let header = |part, to| libc::mmsghdr { msg_hdr: message(part, to), msg_len: 0 };
    let mut messages = [header(first, what[0].1), header(second, what[1].1)];
    // SAFETY: both messages refer to data and addresses, which outlive the call; the kernel writes their lengths.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), 2, 0) };
    whole(checked(sent as isize)?, messages.len())
}

/// The receiver of `message` may not outlive `part` and `to`: it holds their addresses.
pub(super) fn message(part: &mut libc::iovec, to: &Address) -> libc::msghdr {
    // SAFETY: msghdr is numbers and pointers; all zeroes is an empty message.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.length();
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message
}

pub(super) fn part(data: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() }
}

/// An integer option.
pub fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value is valid for its length.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, ptr::from_ref(&value).cast(), length) };
    checked(done as isize).map(drop)
}

/// What a non-blocking connect came to.
pub(super) fn finish_connect(socket: &OwnedFd, patience: Duration) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd.
    if checked(unsafe { libc::poll(&raw mut poll, 1, patience.as_millis() as libc::c_int) } as isize)? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(sockopt::socket_error(socket)??)
}

/// A call on the socket that waits gives up after so long.
pub(super) fn set_patience(socket: &OwnedFd, patience: Duration) -> io::Result<()> {
    Ok(sockopt::set_socket_timeout(socket, sockopt::Timeout::Send, Some(patience))?)
}

pub(super) fn checked(result: isize) -> io::Result<isize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn whole(sent: isize, wanted: usize) -> io::Result<()> {
    if sent as usize == wanted { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
