//! Where ways are tried: a network namespace with nothing but a loopback interface, on which the addresses are served that
//! are to be reached, and somebody who looks at every packet. Nothing leaves the machine, and nothing of its network is
//! touched.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::SockProtocol;
use rustix::thread::UnshareFlags;

use super::calls::{self, checked, compatible, family_of, nat64, six_to_four};
use crate::sys::canary::{ELSEWHERE, TARGETS};
use crate::sys::netlink::{self, Netlink, attribute};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// The loopback interface of every namespace.
pub(super) const LOOPBACK: u32 = 1;
const IFF_UP: u32 = 1;

const BACKLOG: i32 = 8;
const FAST_OPEN_QUEUE: libc::c_int = 8;
/// Client, server, and both without a cookie.
const FAST_OPEN: &str = "519";
/// The longest packet that is looked for, and what the tap holds between two looks.
const PACKET: usize = 65_536;
const TAP_BYTES: libc::c_int = 1 << 20;

#[derive(Debug)]
pub struct World {
    tap: OwnedFd,
}

/// An address, and a port that is served there.
#[derive(Debug)]
pub struct Target {
    address: SocketAddr,
    _servers: Vec<OwnedFd>,
}

impl Target {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl World {
    /// For this process, which must have no other threads, from now on.
    pub fn enter() -> io::Result<Self> {
        // SAFETY: file descriptors stay shared, and there is no other thread.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        Self::here()
    }

    /// In the namespace that this process is in already, and has just made.
    pub(super) fn here() -> io::Result<Self> {
        let mut route = Netlink::open(SockProtocol::NetlinkRoute)?;
        let mut up = vec![0; 4];
        for word in [LOOPBACK, IFF_UP, IFF_UP] {
            up.extend(word.to_ne_bytes());
        }
        route.ask(RTM_NEWLINK, 0, &up, |_| ())?;
        let spelled = [nat64, compatible, six_to_four].map(|spelled| spelled(TARGETS[0]).into());
        let others = [TARGETS[1], ELSEWHERE[1]].into_iter().chain(spelled);
        for ip in [TARGETS[0], ELSEWHERE[0]].into_iter().chain(others) {
            match add_address(&mut route, ip) {
                // Without IPv6 there are no ways by it.
                Err(_) if ip.is_ipv6() => {}
                other => other?,
            }
        }
        // Without it (a container's /proc/sys) Fast Opens ask for a cookie first.
        let _ = std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN);
        let every = libc::c_int::from((libc::ETH_P_ALL as u16).to_be());
        let tap = calls::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, every)?;
        calls::set_option(tap.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, TAP_BYTES)?;
        Ok(Self { tap })
    }

    /// A port of its own, served by every protocol that the kernel has. Nobody reads: the kernel takes what comes.
    pub fn target(&self, ip: IpAddr) -> io::Result<Target> {
        let any = SocketAddr::new(ip, 0);
        let tcp = calls::socket(family_of(any), libc::SOCK_STREAM, 0)?;
        rustix::net::bind(&tcp, &any)?;
        calls::set_option(tcp.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN, FAST_OPEN_QUEUE)?;
        rustix::net::listen(&tcp, BACKLOG)?;
        let name: Option<SocketAddr> = rustix::net::getsockname(&tcp)?.try_into().ok();
        let address = name.ok_or(io::ErrorKind::InvalidData)?;
        let udp = calls::socket(family_of(any), libc::SOCK_DGRAM, 0)?;
        rustix::net::bind(&udp, &address)?;
        let mut servers = vec![tcp, udp];
        if let Ok(sctp) = calls::socket(family_of(any), libc::SOCK_STREAM, libc::IPPROTO_SCTP) {
            rustix::net::bind(&sctp, &address)?;
            rustix::net::listen(&sctp, BACKLOG)?;
            servers.push(sctp);
        }
        Ok(Target { address, _servers: servers })
    }

    /// Whether a packet with this token left for anywhere, or any packet for the target's port, since the last time that
    /// this was asked. Its address may be spelled in another way.
    pub fn left(&self, target: &Target, token: &[u8]) -> io::Result<bool> {
        let mut buffer = vec![0; PACKET];
        let mut left = false;
        loop {
            match rustix::net::recv(&self.tap, &mut buffer, rustix::net::RecvFlags::empty()) {
                Ok((_, length)) => {
                    let packet = &buffer[..length.min(PACKET)];
                    left |= contains(packet, token) || is_for(target, packet);
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if self.missed()? {
            return Err(io::Error::other("more packets came than could be looked at"));
        }
        Ok(left)
    }

    /// PACKET_STATISTICS: packets, and those for which there was no room, since the last time.
    fn missed(&self) -> io::Result<bool> {
        let mut counts = [0u32; 2];
        let mut length = size_of_val(&counts) as libc::socklen_t;
        // SAFETY: the counts are valid for their length.
        let done = unsafe {
            let place = counts.as_mut_ptr().cast();
            let (fd, option) = (self.tap.as_raw_fd(), libc::PACKET_STATISTICS);
            libc::getsockopt(fd, libc::SOL_PACKET, option, place, &raw mut length)
        };
        checked(done as isize).map(|_| counts[1] > 0)
    }
}

fn add_address(route: &mut Netlink, ip: IpAddr) -> io::Result<()> {
    // Without a look for duplicates, before which an address cannot be used.
    let (family, octets, flags) = match ip {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec(), 0),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec(), libc::IFA_F_NODAD),
    };
    let mut body = vec![family as u8, 8 * octets.len() as u8, flags as u8, 0];
    body.extend(LOOPBACK.to_ne_bytes());
    body.extend(attribute(IFA_ADDRESS, &octets));
    body.extend(attribute(IFA_LOCAL, &octets));
    route.ask(RTM_NEWADDR, netlink::CREATE, &body, |_| ())
}

fn is_for(target: &Target, packet: &[u8]) -> bool {
    let port = target.address.port();
    destination(packet).is_some_and(|to| to.port() == port && !ELSEWHERE.contains(&to.ip()))
}

fn contains(packet: &[u8], token: &[u8]) -> bool {
    !token.is_empty() && packet.windows(token.len()).any(|part| part == token)
}

/// Of a packet of TCP, UDP or SCTP, which all begin with the ports.
fn destination(packet: &[u8]) -> Option<SocketAddr> {
    let (ip, protocol, rest): (IpAddr, u8, usize) = match packet.first()? >> 4 {
        4 => {
            let octets: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (octets.into(), *packet.get(9)?, usize::from(packet.first()? & 15) * 4)
        }
        6 => {
            let octets: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (octets.into(), *packet.get(6)?, 40)
        }
        _ => return None,
    };
    let port = u16::from_be_bytes(packet.get(rest + 2..rest + 4)?.try_into().ok()?);
    let has_ports = [libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_SCTP].contains(&protocol.into());
    has_ports.then_some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_from_packets() {
        let v4 = [
            &[0x46, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 127, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0, 0][..],
            &[0, 1, 1, 187],
        ];
        assert_eq!(destination(&v4.concat()), "192.0.2.1:443".parse().ok());
        let mut v6 = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
        v6.extend([0; 16]);
        v6.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        v6.extend([0, 1, 0, 53]);
        assert_eq!(destination(&v6), "[2001:db8::1]:53".parse().ok());
        v6[6] = 58;
        assert_eq!(destination(&v6), None);
        for length in 0..24 {
            assert_eq!(destination(&v4.concat()[..length]), None);
        }
        assert!(contains(b"abc", b"bc") && !contains(b"abc", b"") && !contains(b"a", b"ab"));
    }
}
