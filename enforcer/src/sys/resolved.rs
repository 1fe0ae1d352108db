//! Listens to what systemd-resolved answers (io.systemd.Resolve.Monitor): names that were asked for past DNS (nss-resolve,
//! D-Bus), or that it knew or learnt in ways that are no packets we can read (its cache, DNS over TLS).

use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use crate::engine::dns::monitor::{self, Heard, MonitorError};

const SOCKET: &str = "/run/systemd/resolve/io.systemd.Resolve.Monitor";
/// Of enforcer-resolved.socket, behind which somebody passes on what comes from there.
const PROXY: &str = "/run/enforcer-resolved.sock";
/// Between two attempts at first, and at most: resolved comes back soon, or it is not there.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The socket is systemd-resolve's alone.
const FORBIDDEN: &str = "its feed is for root with CAP_DAC_OVERRIDE, which this daemon has not, and nobody passes it on: \
                         `systemctl start enforcer-resolved.socket`";
const READ: usize = 16_384;
/// Messages that are handled before anybody else has a turn.
const BATCH: usize = 64;

/// Whether its answers are heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nobody listens at its socket: it does not run, or is older than systemd 252.
    Absent,
    /// It was asked to tell.
    Asked,
    Connected,
    /// It does not let us, or does not understand us.
    Failed(String),
}

#[derive(Debug)]
pub struct Monitor {
    stream: Option<AsyncFd<UnixStream>>,
    link: Link,
    by_proxy: bool,
    /// Of messages that are not whole yet.
    buffer: Vec<u8>,
    /// As far as it was searched for an end.
    searched: usize,
    /// A batch ended before what has arrived did.
    more: bool,
    next: Instant,
    pause: Duration,
    /// Times that it hung up.
    pub lost: u64,
}

impl Monitor {
    /// Connected, if it runs already.
    pub fn start() -> Self {
        let mut monitor = Self {
            stream: None,
            link: Link::Absent,
            by_proxy: false,
            buffer: Vec::new(),
            searched: 0,
            more: false,
            next: Instant::now(),
            pause: FIRST_PAUSE,
            lost: 0,
        };
        monitor.connect();
        monitor
    }

    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Until there is something to hear, or it is time to try again: `hear` does either.
    pub async fn ready(&self) {
        match &self.stream {
            Some(_) if self.more => {}
            // It cannot be waited for: reading tells why.
            Some(stream) => drop(stream.readable().await),
            None => sleep_until(self.next).await,
        }
    }

    /// Hands each message that has arrived to `each`. Never waits.
    pub fn hear(&mut self, mut each: impl FnMut(Result<Heard, MonitorError>)) {
        if self.stream.is_none() {
            if self.next > Instant::now() {
                return;
            }
            self.connect();
        }
        self.more = false;
        for _ in 0..BATCH {
            let heard = match self.message() {
                Ok(Some(message)) => monitor::read(&message),
                Ok(None) => return,
                Err(error) => return self.hang_up(&error),
            };
            match &heard {
                Ok(Heard::Ready) => {
                    self.link = Link::Connected;
                    self.pause = FIRST_PAUSE;
                }
                Ok(Heard::Refused(why)) => {
                    let error = io::Error::other(format!("it answered {why:?}"));
                    each(heard);
                    return self.hang_up(&error);
                }
                _ => each(heard),
            }
        }
        self.more = true;
    }

    /// The next whole message. `None`: there is none yet.
    fn message(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(stream) = &self.stream else { return Ok(None) };
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|&byte| byte == 0) {
                let rest = self.buffer.split_off(self.searched + end + 1);
                let mut message = std::mem::replace(&mut self.buffer, rest);
                message.pop();
                self.searched = 0;
                return Ok(Some(message));
            }
            self.searched = self.buffer.len();
            if self.searched > monitor::LONGEST {
                return Err(io::Error::other("it sent a message without an end"));
            }
            // The socket itself is asked, not what is known of it: what it told before a connect is wanted before that.
            let mut bytes = [0; READ];
            match stream.get_ref().read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.buffer.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // No event: readiness from before does not count any more.
                    let _ = stream.try_io(Interest::READABLE, |_| Err::<(), _>(ErrorKind::WouldBlock.into()));
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn connect(&mut self) {
        let direct = subscribe(SOCKET.as_ref());
        self.by_proxy = direct.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
        match direct.or_else(|error| if self.by_proxy { by_proxy(error) } else { Err(error) }) {
            Ok(stream) => {
                self.link = Link::Asked;
                self.stream = Some(stream);
            }
            Err(error) => {
                self.link = match error.kind() {
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused => Link::Absent,
                    ErrorKind::PermissionDenied => Link::Failed(FORBIDDEN.into()),
                    _ => Link::Failed(error.to_string()),
                };
                self.rest();
            }
        }
    }

    fn hang_up(&mut self, error: &io::Error) {
        self.lost += u64::from(self.link == Link::Connected);
        self.link = match error.kind() {
            // The proxy takes every connection, and hangs up where resolved would not have taken it.
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                if self.link == Link::Connected || self.by_proxy =>
            {
                Link::Absent
            }
            _ => Link::Failed(error.to_string()),
        };
        self.stream = None;
        self.buffer = Vec::new();
        self.searched = 0;
        self.more = false;
        self.rest();
    }

    fn rest(&mut self) {
        self.next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// Where the socket itself was refused.
fn by_proxy(refused: io::Error) -> io::Result<AsyncFd<UnixStream>> {
    subscribe(PROXY.as_ref()).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => refused,
        // It found nobody, and was quick to say so.
        ErrorKind::BrokenPipe => ErrorKind::NotFound.into(),
        _ => io::Error::new(error.kind(), format!("{PROXY}: {error}")),
    })
}

/// Connects and asks. Never waits: what listens here takes it at once, or is in trouble.
fn subscribe(path: &Path) -> io::Result<AsyncFd<UnixStream>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    let sent = rustix::net::send(&stream, monitor::SUBSCRIBE, rustix::net::SendFlags::NOSIGNAL)?;
    if sent < monitor::SUBSCRIBE.len() {
        return Err(io::Error::other("it does not take the question"));
    }
    // SAFETY: the stream owns its descriptor, and neither closes nor changes it before it is dropped.
    unsafe { AsyncFd::register_with_interest(stream, Interest::READABLE) }.map_err(io::Error::from)
}
