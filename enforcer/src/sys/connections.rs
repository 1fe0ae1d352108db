//! Connections that are open in this network namespace, and their end (sock_diag(7)).

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::sys::socket::SockProtocol;

use super::netlink::{DUMP, Netlink};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// States of sockets, for UDP, too, where it is connected or not.
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
/// Those that may still carry something: not closed, not waiting out its time, not yet accepted.
const TCP_STATES: u32 = !(1 << 3 | 1 << 6 | 1 << CLOSE | 1 << 12);
const UDP_STATES: u32 = 1 << ESTABLISHED | 1 << CLOSE;

/// struct inet_diag_sockid, in which the kernel finds a socket: addresses, ports, interface, cookie.
const ID: usize = 48;
/// struct inet_diag_msg
const ANSWER: usize = 72;

/// At most so many are ended at a time; the others when it is looked again.
const MANY: usize = 4096;

/// A socket that is connected, or waits for connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub protocol: u8,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub uid: u32,
    /// Of the socket; 0: no process holds it any more.
    pub inode: u32,
    family: u8,
    id: [u8; ID],
}

#[derive(Debug)]
pub struct Connections {
    netlink: Netlink,
}

impl Connections {
    /// `None`: this kernel cannot end connections.
    pub fn open() -> io::Result<Option<Self>> {
        let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
        // A socket that there is not: an address of its own has no port 0.
        let nobody = request(libc::AF_INET as u8, TCP, 0, &[0; ID]);
        match netlink.ask(SOCK_DESTROY, 0, &nobody, |_| ()) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Some(Self { netlink })),
            Err(error) => Err(error),
            Ok(()) => Ok(Some(Self { netlink })),
        }
    }

    /// Those that were opened from here to a peer that is `wanted`. What has the port of a socket that waits for others is
    /// taken for accepted. At most `MANY`.
    pub fn to(&mut self, mut wanted: impl FnMut(IpAddr) -> bool) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        for (protocol, states) in [(TCP, TCP_STATES), (UDP, UDP_STATES)] {
            let mut waiting = Ports::default();
            let mut open = Vec::new();
            for family in [libc::AF_INET, libc::AF_INET6] {
                let all = request(family as u8, protocol, states, &[0; ID]);
                self.netlink.ask(SOCK_DIAG_BY_FAMILY, DUMP, &all, |body| {
                    let Some((state, connection)) = parse(body, protocol) else { return };
                    let waits = if protocol == TCP { state == LISTEN } else { state == CLOSE };
                    if waits {
                        waiting.add(connection.local.port());
                    } else if open.len() < MANY && wanted(connection.peer.ip()) {
                        open.push(connection);
                    }
                })?;
            }
            found.extend(open.into_iter().filter(|connection| !waiting.has(connection.local.port())));
        }
        Ok(found)
    }

    /// Whoever holds the socket is told ECONNABORTED. False: it was gone already.
    pub fn end(&mut self, connection: &Connection) -> io::Result<bool> {
        let Connection { family, protocol, id, .. } = connection;
        match self.netlink.ask(SOCK_DESTROY, 0, &request(*family, *protocol, 0, id), |_| ()) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// TCP sockets that wait for connections.
pub fn waiting() -> io::Result<Vec<Connection>> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    let mut waiting = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let all = request(family as u8, TCP, 1 << LISTEN, &[0; ID]);
        netlink.ask(SOCK_DIAG_BY_FAMILY, DUMP, &all, |body| {
            waiting.extend(parse(body, TCP).map(|(_, connection)| connection));
        })?;
    }
    Ok(waiting)
}

/// A set of ports.
struct Ports(Vec<u64>);

impl Default for Ports {
    fn default() -> Self {
        Self(vec![0; 1024])
    }
}

impl Ports {
    fn add(&mut self, port: u16) {
        self.0[usize::from(port) / 64] |= 1 << (port % 64);
    }

    fn has(&self, port: u16) -> bool {
        self.0[usize::from(port) / 64] >> (port % 64) & 1 != 0
    }
}

/// struct inet_diag_req_v2
fn request(family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    [&[family, protocol, 0, 0][..], &states.to_ne_bytes(), id].concat()
}

/// A struct inet_diag_msg: its state, and the rest.
fn parse(body: &[u8], protocol: u8) -> Option<(u8, Connection)> {
    let body: &[u8; ANSWER] = body.first_chunk()?;
    let [family, state, ..] = *body;
    let id: [u8; ID] = *body[4..].first_chunk()?;
    let number = |at: usize| body[at..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let ip = |at: usize| -> Option<IpAddr> {
        match i32::from(family) {
            libc::AF_INET => Some(IpAddr::from(*id[at..].first_chunk::<4>()?)),
            libc::AF_INET6 => Some(Ipv6Addr::from(*id[at..].first_chunk::<16>()?).to_canonical()),
            _ => None,
        }
    };
    let connection = Connection {
        protocol,
        local: SocketAddr::new(ip(4)?, port(0)),
        peer: SocketAddr::new(ip(20)?, port(2)),
        uid: number(64)?,
        inode: number(68)?,
        family,
        id,
    };
    Some((state, connection))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn what_was_opened_from_here_is_found_and_ended() {
        let listener = TcpListener::bind("127.0.0.61:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let _accepted = listener.accept().unwrap();
        let mapped =
            TcpStream::connect("[::ffff:127.0.0.61]:".to_owned() + &address.port().to_string()).unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect("127.0.0.61:9").unwrap();
        let Some(mut connections) = Connections::open().unwrap() else {
            panic!("this kernel lacks CONFIG_INET_DIAG_DESTROY")
        };
        let far: IpAddr = "127.0.0.61".parse().unwrap();
        let found = connections.to(|ip| ip == far).unwrap();
        let mut locals: Vec<_> = found.iter().map(|one| one.local.port()).collect();
        locals.sort_unstable();
        let mut wanted: Vec<_> = [stream.local_addr(), mapped.local_addr(), datagrams.local_addr()]
            .map(|it| it.unwrap().port())
            .into();
        wanted.sort_unstable();
        // The accepted ends have the same addresses the other way round.
        assert_eq!(locals, wanted, "{found:?}");
        assert!(found.iter().all(|one| one.uid == 0 && one.inode != 0 && one.peer.ip() == far), "{found:?}");
        for one in &found {
            assert!(connections.end(one).unwrap());
            assert!(!connections.end(one).unwrap(), "twice");
        }
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(connections.to(|ip| ip == far).unwrap(), []);
        drop(mapped);
    }

    #[test]
    fn what_is_cut_off_is_no_connection() {
        let mut body = [0u8; ANSWER];
        body[..8].copy_from_slice(&[libc::AF_INET as u8, ESTABLISHED, 0, 0, 0, 80, 1, 187]);
        body[24..28].copy_from_slice(&[192, 0, 2, 1]);
        let (state, connection) = parse(&body, TCP).unwrap();
        assert_eq!((state, connection.peer), (ESTABLISHED, "192.0.2.1:443".parse().unwrap()));
        assert!(parse(&body[..ANSWER - 1], TCP).is_none());
        body[0] = 1;
        assert!(parse(&body, TCP).is_none());
        let mut ports = Ports::default();
        ports.add(65535);
        ports.add(0);
        assert!(ports.has(0) && ports.has(65535) && !ports.has(1));
    }
}
