//! The syslog sink: RFC 5424 (or 3164) to a unix socket, over UDP or over TCP.
//!
//! Each error drops the connection, and the events that met it are sent again on a new one. TCP has no answer from the
//! other side's daemon: a batch counts as written when the other side's kernel has acknowledged all of it, so that a
//! daemon that restarts costs duplicates at most, not events (those excepted that it had received and not read). UDP has no
//! answer at all, unless nobody listens: then the other side's kernel may say so, and what it says so of is sent again,
//! or counts as lost if it counted as written.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use jiff::tz::TimeZone;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::{Batch, Failure, Output};
use crate::config::{Facility, SyslogRfc, SyslogServer};
use crate::engine::format::Format;
use crate::engine::format::text::Stamp;
use crate::engine::record::{Event, VerdictName};

/// What every syslog daemon takes in one message. A larger one would fail each time it is tried again.
const MAX_MESSAGE: usize = 8192;
/// For a connection, and for one write.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Syslog {
    to: SyslogServer,
    writer: Writer,
    connection: Option<Connection>,
}

/// Makes messages.
pub(super) struct Writer {
    pub(super) facility: Facility,
    pub(super) rfc: SyslogRfc,
    pub(super) format: Format,
    pub(super) host: String,
}

enum Connection {
    Unix(UnixDatagram),
    Udp(UdpSocket),
    UnixStream(UnixStream),
    Tcp(TcpStream),
}

/// How far it came.
struct Broken {
    written: usize,
    /// Of those before, which counted as written.
    recalled: u64,
    error: io::Error,
}

impl Syslog {
    pub(super) fn new(to: SyslogServer, writer: Writer) -> Self {
        Self { to, writer, connection: None }
    }

    fn send(&mut self, events: &[Arc<Event>]) -> Result<(), Broken> {
        let none = |error| Broken { written: 0, recalled: 0, error };
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.to).map_err(none)?,
        };
        let connection = self.connection.insert(connection);
        let remote = !matches!(self.to, SyslogServer::Unix(_));
        let messages = events.iter().map(|event| self.writer.message(event, remote));
        match connection {
            Connection::Unix(socket) => local(socket, messages),
            Connection::Udp(socket) => datagrams(socket, messages),
            Connection::UnixStream(stream) => stream_all(stream, messages).map_err(none),
            Connection::Tcp(stream) => stream_all(stream, messages).map_err(none),
        }
    }
}

impl Output for Syslog {
    fn write(&mut self, events: &[Arc<Event>]) -> Result<(), Failure> {
        self.send(events).map_err(|Broken { written, recalled, error }| {
            self.connection = None;
            let to: &dyn Display = match &self.to {
                SyslogServer::Unix(path) => &path.display(),
                SyslogServer::Udp(server) | SyslogServer::Tcp(server) => server,
            };
            Failure { recalled, ..Failure::passing(written, format!("{to}: {error}")) }
        })
    }

    fn batch(&self) -> Batch {
        // A batch on a stream waits for its acknowledgement.
        Batch { events: 2048, delay: Duration::ZERO }
    }
}

fn connect(to: &SyslogServer) -> io::Result<Connection> {
    match to {
        SyslogServer::Unix(path) => unix(path),
        SyslogServer::Udp(server) => first(server, |address| {
            let any = match address {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            Ok(Connection::Udp(socket))
        }),
        SyslogServer::Tcp(server) => first(server, |address| {
            let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(Connection::Tcp(stream))
        }),
    }
}

fn unix(path: &Path) -> io::Result<Connection> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    match socket.connect(path) {
        Ok(()) => Ok(Connection::Unix(socket)),
        Err(error) if error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) => {
            let stream = UnixStream::connect(path)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(Connection::UnixStream(stream))
        }
        Err(error) => Err(error),
    }
}

/// The first address of the server that works.
fn first(server: &str, connect: impl Fn(SocketAddr) -> io::Result<Connection>) -> io::Result<Connection> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in server.to_socket_addrs()? {
        match connect(address) {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn local(socket: &UnixDatagram, messages: impl Iterator<Item = String>) -> Result<(), Broken> {
    for (written, message) in messages.enumerate() {
        socket.send(message.as_bytes()).map_err(|error| Broken { written, recalled: 0, error })?;
    }
    Ok(())
}

/// That nobody listens is said of a datagram after it was sent: at once on this host, later from another.
fn datagrams(socket: &UdpSocket, messages: impl Iterator<Item = String>) -> Result<(), Broken> {
    let said = |socket: &UdpSocket| socket.take_error().and_then(|error| error.map_or(Ok(()), Err));
    // Of the last one of the batch before.
    said(socket).map_err(|error| Broken { written: 0, recalled: 1, error })?;
    for (written, message) in messages.enumerate() {
        let of_before = |error: &io::Error| u64::from(error.kind() == io::ErrorKind::ConnectionRefused);
        let sent = socket.send(message.as_bytes());
        sent.map_err(|error| Broken { written, recalled: of_before(&error), error })?;
        said(socket).map_err(|error| Broken { written, recalled: 0, error })?;
    }
    Ok(())
}

/// Octet counting (RFC 6587): no message can pose as two.
fn stream_all(stream: &mut (impl Write + AsFd), messages: impl Iterator<Item = String>) -> io::Result<()> {
    still_open(stream)?;
    let mut bytes = Vec::new();
    for message in messages {
        bytes.extend(format!("{} {message}", message.len()).bytes());
    }
    stream.write_all(&bytes)?;
    acknowledged(stream)
}

/// A peer that closed has sent its end. Anything else that it sent is nothing to us.
fn still_open(stream: &impl AsFd) -> io::Result<()> {
    let mut bytes = [0; 512];
    loop {
        match rustix::net::recv(stream, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the other side closed"));
            }
            Ok(_) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until nothing is on its way any more.
fn acknowledged(stream: &impl AsFd) -> io::Result<()> {
    let mut pause = Duration::from_micros(50);
    let mut waited = Duration::ZERO;
    while unsent(stream)? > 0 {
        if waited > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the other side does not acknowledge"));
        }
        thread::sleep(pause);
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(5));
        still_open(stream)?;
    }
    still_open(stream)
}

/// Bytes in the socket's send queue that the peer has not acknowledged.
fn unsent(stream: &impl AsFd) -> io::Result<i32> {
    use rustix::ioctl::{Getter, ioctl};
    // SAFETY: TIOCOUTQ writes one int.
    let getter = unsafe { Getter::<{ libc::TIOCOUTQ as u32 }, i32>::new() };
    // SAFETY: on a socket (SIOCOUTQ is the same number) it only asks.
    Ok(unsafe { ioctl(stream, getter) }?)
}

impl Writer {
    /// `remote`: the receiver does not know which host it comes from.
    fn message(&self, event: &Event, remote: bool) -> String {
        let mut message = self.framed(event, remote);
        if message.len() > MAX_MESSAGE {
            message = self.framed(&event.shortened(), remote);
        }
        if message.len() > MAX_MESSAGE {
            message.truncate(MAX_MESSAGE - 4); // ASCII
            message.push_str(" ...");
        }
        message
    }

    fn framed(&self, event: &Event, remote: bool) -> String {
        let priority = u32::from(self.facility.0) << 3 | severity(event);
        let (host, pid) = (self.host(), std::process::id());
        let body = self.format.render(event, &self.host, Stamp::None);
        match self.rfc {
            SyslogRfc::Rfc5424 => {
                format!(
                    "<{priority}>1 {} {host} enforcer {pid} {} - {body}",
                    micros(event.time()),
                    event.kind()
                )
            }
            SyslogRfc::Rfc3164 => {
                let host = if remote { format!("{host} ") } else { String::new() };
                format!("<{priority}>{} {host}enforcer[{pid}]: {body}", local_time(event.time()))
            }
        }
    }

    fn host(&self) -> &str {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if !self.host.is_empty() && self.host.bytes().all(good) { &self.host } else { "-" }
    }
}

fn severity(event: &Event) -> u32 {
    match event {
        Event::Gap(_) => 3,
        Event::RefusedBinding(_) => 4,
        other => match other.connect().map(|connect| connect.verdict) {
            Some(VerdictName::Deny) => 4,
            Some(VerdictName::Audit) => 5,
            Some(VerdictName::Allow) | None => 6,
        },
    }
}

/// RFC 5424 allows six digits of a second, the event has nine.
fn micros(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => format!("{time:.6}"),
        Err(_) => "-".into(),
    }
}

/// RFC 3164 is in local time.
fn local_time(time: &str) -> String {
    let time = time.parse().unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.to_zoned(TimeZone::system()).strftime("%b %e %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::samples;

    fn writer(rfc: SyslogRfc, format: Format) -> Writer {
        Writer { facility: Facility(19), rfc, format, host: "web1".into() }
    }

    #[test]
    fn a_message_has_the_form_of_its_rfc() {
        let event = Event::TcpConnect(samples::connect());
        let pid = std::process::id();
        let new = writer(SyslogRfc::Rfc5424, Format::Text).message(&event, true);
        let head = format!(
            "<156>1 2026-11-23T12:08:32.123456Z web1 enforcer {pid} net_tcp_connect - DENY   tcp  192.0.2.10"
        );
        assert!(new.starts_with(&head), "{new}");
        let old = writer(SyslogRfc::Rfc3164, Format::Text).message(&event, true);
        assert!(
            old.starts_with("<156>Nov 2") && old.contains(&format!(" web1 enforcer[{pid}]: DENY ")),
            "{old}"
        );
        let old = writer(SyslogRfc::Rfc3164, Format::Text).message(&event, false);
        assert!(!old.contains("web1"), "{old}");
    }

    #[test]
    fn a_long_event_is_still_whole_json() {
        let mut connect = samples::connect();
        connect.results = vec!["x".repeat(250); 1000];
        connect.process.arguments = Some(vec!["y".repeat(10_000)]);
        let message = writer(SyslogRfc::Rfc5424, Format::Json).message(&Event::TcpConnect(connect), true);
        assert!(message.len() <= MAX_MESSAGE);
        let (_, body) = message.split_once(" - ").unwrap();
        let Event::TcpConnect(short) = serde_json::from_str(body).unwrap() else { panic!("{body}") };
        assert_eq!(short.dst_port, 443);
    }

    #[test]
    fn a_host_with_a_strange_name_breaks_no_message() {
        let writer = Writer { host: "a b\n".into(), ..writer(SyslogRfc::Rfc5424, Format::Text) };
        assert!(writer.message(&Event::Gap(samples::gap()), true).contains("Z - enforcer "));
    }
}
