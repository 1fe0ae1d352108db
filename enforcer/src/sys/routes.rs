//! The kernel's word that addresses or routes of the host changed (rtnetlink(7)). What changed is not read from it: who
//! hears it looks at all of them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE.
const GROUPS: u32 = 0x10 | 0x40 | 0x100 | 0x400;
/// The most often that anybody looks, however many routes come and go.
const PAUSE: Duration = Duration::from_millis(100);
/// A message is cut off rather than waited for: nobody reads it.
const BUFFER: usize = 4096;

/// A message for each time that something changed; several in quick succession are one.
pub fn watch() -> io::Result<mpsc::Receiver<()>> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    // SAFETY: the socket owns its descriptor, and neither closes nor changes it before it is dropped.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(forward(socket, sender));
    Ok(receiver)
}

async fn forward(socket: AsyncFd<OwnedFd>, changed: mpsc::Sender<()>) {
    while let Ok(mut ready) = socket.readable().await {
        let mut bytes = [0; BUFFER];
        // Too many for the socket's buffer (ENOBUFS) is news as well.
        while !matches!(
            recv(ready.get_inner().as_raw_fd(), &mut bytes, MsgFlags::empty()),
            Err(nix::Error::EAGAIN)
        ) {}
        ready.clear_ready();
        if changed.send(()).await.is_err() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
