//! Requests to the kernel by netlink(7), and the bytes of its answers.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// NLM_F_ROOT | NLM_F_MATCH: all there are.
pub const DUMP: u16 = 0x300;
/// NLM_F_CREATE | NLM_F_EXCL
pub const CREATE: u16 = 0x600;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// More than the kernel puts into one packet.
const BUFFER: usize = 65_536;
/// The kernel answers at once, or not at all.
const PATIENCE_SECONDS: i64 = 5;

#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Hands the body of each message of the answer to `each`. The kernel's refusal is an error.
    pub fn ask(&mut self, kind: u16, flags: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.sequence += 1;
        // A dump ends by itself.
        let ack = if flags & DUMP == DUMP { 0 } else { ACK };
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | ack | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            for answer in messages(&self.buffer[..length]) {
                if answer.sequence != self.sequence {
                    continue; // of a request that was given up
                }
                match answer.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return refusal(answer.body),
                    _ => each(answer.body),
                }
            }
        }
    }
}

/// 0 is none.
fn refusal(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let message = bytes.get(..length)?;
        let (head, body) = message.split_at_checked(HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        Some(Message { kind, sequence: u32::from_ne_bytes([head[8], head[9], head[10], head[11]]), body })
    })
}

/// An attribute, padded.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of this kind.
pub fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let (head, _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RTM_GETLINK: the loopback interface is there, whatever else is.
    #[test]
    fn the_kernel_answers() {
        let mut route = Netlink::open(SockProtocol::NetlinkRoute).unwrap();
        let mut names = Vec::new();
        route.ask(18, DUMP, &[0; 16], |body| names.extend(find(&body[16..], 3).map(<[u8]>::to_vec))).unwrap();
        assert!(names.contains(&b"lo\0".to_vec()), "{names:?}");
        // One of a kind that there is not.
        let error = route.ask(0x7000, 0, &[0; 16], |_| ()).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let whole = [&20u32.to_ne_bytes()[..], &[0; 12], &[1, 2, 3, 4]].concat();
        assert_eq!(messages(&whole).count(), 1);
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length}");
        }
        assert_eq!(messages(&[&4u32.to_ne_bytes()[..], &[0; 16]].concat()).count(), 0);
        assert_eq!(find(&attribute(7, b"abc"), 7), Some(&b"abc"[..]));
        assert_eq!(find(&[attribute(6, b"abc"), attribute(7, b"")].concat(), 7), Some(&b""[..]));
        assert_eq!(find(&attribute(7, b"abc")[..5], 7), None);
        assert_eq!(find(&[0; 8], 7), None);
    }
}
