//! By another process than the one whose socket it is, and from other namespaces.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::thread::UnshareFlags;

use super::calls::{self, Address, family_of};
use super::{World, stream};

pub(super) fn inherited(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let (socket, data) = (stream::tcp(family_of(to))?, data.to_vec());
    in_child(move || calls::connect_and_send(&socket, &Address::new(to), &data))
}

pub(super) fn passed(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let (socket, data) = (stream::tcp(family_of(to))?, data.to_vec());
    by_receiver(&socket, move |socket| calls::connect_and_send(socket, &Address::new(to), &data))
}

pub(super) fn send_inherited(socket: &OwnedFd, data: &[u8]) -> io::Result<()> {
    let (socket, data) = (socket.try_clone()?, data.to_vec());
    in_child(move || calls::send(&socket, &data))
}

pub(super) fn send_passed(socket: &OwnedFd, data: &[u8]) -> io::Result<()> {
    let data = data.to_vec();
    by_receiver(socket, move |socket| calls::send(socket, &data))
}

pub(super) fn in_user_namespace(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    apart(UnshareFlags::NEWUSER | UnshareFlags::NEWNET, to, data)
}

pub(super) fn in_container(to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let kinds = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    apart(kinds, to, data)
}

/// A network of its own has an address and a server of its own there.
fn apart(kinds: UnshareFlags, to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let data = data.to_vec();
    in_child(move || {
        // Where it is forbidden altogether it is no way.
        // SAFETY: of the child nothing is shared with anybody.
        unsafe { rustix::thread::unshare_unsafe(kinds) }
            .map_err(|_| io::Error::from_raw_os_error(libc::ENOSYS))?;
        let world = World::here()?;
        let target = world.target(to.ip())?;
        let tried = stream::connect(target.address(), &data);
        if world.left(&target, &data)? {
            return Ok(());
        }
        tried.and(Err(io::Error::from_raw_os_error(libc::EIO)))
    })
}

/// The socket is given to a child by a unix socket; it has no other way to it.
fn by_receiver(
    socket: &OwnedFd,
    mut work: impl FnMut(&OwnedFd) -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<()> {
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let given = [socket.as_fd()];
    rights.push(SendAncillaryMessage::ScmRights(&given));
    sendmsg(&near, &[IoSlice::new(b"x")], &mut rights, SendFlags::empty())?;
    in_child(move || work(&received(&far)?))
}

fn received(from: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
    let sockets = rights.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    sockets.last().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// What the child says is told as the error for which it could not be started: 0 is none.
fn in_child(mut work: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> io::Result<()> {
    let ended = move || Err(work().err().unwrap_or_else(|| io::Error::from_raw_os_error(0)));
    let mut child = Command::new("/");
    // SAFETY: this process has one thread, so nobody holds a lock that the child would wait for.
    unsafe { child.pre_exec(ended) };
    match child.spawn() {
        Err(error) if error.raw_os_error() == Some(0) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("a child went on that should have ended")),
    }
}
