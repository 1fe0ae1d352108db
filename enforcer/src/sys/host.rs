//! The host's own addresses, resolvers and gateways: what a DNS answer must never be able to deny. And its namespaces.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use enforcer_common::Addr;
use ipnetwork::IpNetwork;
use nix::ifaddrs::getifaddrs;

/// Where resolvers stand: the C library's, and behind systemd-resolved's stub.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The gateway in a line of a table of routes, if it is a default route's.
type Gateway = fn(&str) -> Option<Addr>;

const ROUTES: [(&str, Gateway); 2] = [("/proc/net/route", gateway_v4), ("/proc/net/ipv6_route", gateway_v6)];

/// What the host is known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its own addresses and its resolvers': who answers from there is believed.
    pub servers: HashSet<Addr>,
    /// Next hops of its default routes.
    pub gateways: HashSet<Addr>,
}

impl Host {
    /// As it is now.
    pub fn read() -> std::io::Result<Self> {
        let mut servers: HashSet<Addr> = own()?.collect();
        servers.extend(asked());
        let mut gateways = HashSet::new();
        for (path, gateway) in ROUTES {
            // Without IPv6 there is no such file.
            if let Ok(text) = fs::read_to_string(path) {
                gateways.extend(text.lines().filter_map(gateway));
            }
        }
        Ok(Self { servers, gateways })
    }

    /// What is never denied on this host, as networks; with what the settings say. In order, so that the same host says the
    /// same.
    pub fn never_deny(&self, settings: &[IpNetwork]) -> Vec<IpNetwork> {
        let own = self.protected();
        let own = own.iter().map(|addr| IpAddr::from(*addr).into());
        let all: BTreeSet<IpNetwork> = own.chain(settings.iter().copied()).collect();
        all.into_iter().collect()
    }

    /// What no answer may deny.
    pub fn protected(&self) -> HashSet<Addr> {
        self.servers.union(&self.gateways).copied().collect()
    }
}

/// The host's resolvers, now.
pub fn asked() -> Vec<Addr> {
    let texts = RESOLV_CONF.iter().filter_map(|path| fs::read_to_string(path).ok());
    texts.flat_map(|text| resolvers(&text).collect::<Vec<_>>()).collect()
}

/// Tells one version of the files with the resolvers from the next: file system, inode, time.
pub type ResolversVersion = [Option<(u64, u64, i64, i64)>; 2];

pub fn resolvers_version() -> ResolversVersion {
    RESOLV_CONF.map(|path| {
        let file = fs::metadata(path).ok()?;
        Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec()))
    })
}

const RTF_GATEWAY: u32 = 2;

/// A line of /proc/net/route: interface, destination, gateway, flags, four numbers, mask.
fn gateway_v4(line: &str) -> Option<Addr> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let word = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
    let default = word(1)? == 0 && word(7)? == 0 && word(3)? & RTF_GATEWAY != 0;
    // Printed as a number, which it is in memory.
    default.then_some(Addr::from_v4(word(2)?.to_ne_bytes()))
}

/// A line of /proc/net/ipv6_route: destination, its prefix, source, its prefix, next hop, three numbers, flags.
fn gateway_v6(line: &str) -> Option<Addr> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let word = |at: usize| u128::from_str_radix(words.get(at)?, 16).ok();
    let default = word(0)? == 0 && word(1)? == 0 && word(8)? & u128::from(RTF_GATEWAY) != 0;
    default.then_some(Addr::from_v6(word(4)?.to_be_bytes()))
}

/// Whether port 53 is open to everybody.
pub fn users_may_serve_dns() -> bool {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.ok().and_then(|text| text.trim().parse::<u32>().ok()).is_some_and(|port| port <= 53)
}

/// Inode numbers of this process's network namespace, which is taken for the host's, and of the user namespace that it
/// belongs to.
pub fn namespaces() -> std::io::Result<(u32, u32)> {
    let net = fs::File::open("/proc/self/ns/net")?;
    // SAFETY: takes no argument but the descriptor, and gives a new one.
    let owner = unsafe { libc::ioctl(net.as_raw_fd(), NS_GET_USERNS) };
    if owner < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    let owner = fs::File::from(unsafe { OwnedFd::from_raw_fd(owner) });
    // The kernel numbers namespaces with 32 bits.
    let number = |file: &fs::File| file.metadata().map(|metadata| metadata.ino() as u32);
    Ok((number(&net)?, number(&owner)?))
}

/// ioctl_ns(2): `_IO(0xb7, 1)`.
const NS_GET_USERNS: libc::Ioctl = 0xb701;

fn own() -> std::io::Result<impl Iterator<Item = Addr>> {
    let interfaces = getifaddrs()?;
    Ok(interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| Addr::from_v4(v4.ip().octets()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| Addr::from_v6(v6.ip().octets())))
    }))
}

/// The `nameserver` lines of a resolv.conf(5).
fn resolvers(text: &str) -> impl Iterator<Item = Addr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else { return None };
        // A link-local address carries its interface: fe80::1%eth0.
        let address = address.split('%').next()?;
        Some(Addr::from(address.parse::<IpAddr>().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_include_loopback() {
        assert!(own().unwrap().any(|addr| addr == Addr::from_v4([127, 0, 0, 1])));
    }

    #[test]
    fn default_routes_rows() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                  eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                  eth1\t00000000\t020200C0\t0003\t0\t0\t0\t00000080\t0\t0\t0\n\
                  tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\nshort\n";
        let found: Vec<Addr> = v4.lines().filter_map(gateway_v4).collect();
        assert_eq!(found, [Addr::from_v4([192, 0, 2, 1])]);
        let zeros = "00000000000000000000000000000000";
        let v6 = format!(
            "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 lo\n\
             20010db8000000000000000000000000 40 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001 eth0\n"
        );
        let found: Vec<Addr> = v6.lines().filter_map(gateway_v6).collect();
        assert_eq!(found, [Addr::from("fe80::1".parse::<IpAddr>().unwrap())]);
    }

    #[test]
    fn namespaces_are_those_of_proc() {
        let (net, owner) = namespaces().unwrap();
        let name = fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(name.to_str(), Some(format!("net:[{net}]").as_str()));
        assert_ne!(owner, 0);
    }

    #[test]
    fn resolv_conf_rows() {
        let text = "# comment\nnameserver 192.0.2.53\n\tnameserver\t2001:db8::53 # why\nnameserver fe80::1%eth0\n\
                    options edns0\nnameserver\nnameserver nonsense\nsearch nameserver.example\n";
        let found: Vec<Addr> = resolvers(text).collect();
        let want =
            ["192.0.2.53", "2001:db8::53", "fe80::1"].map(|ip| Addr::from(ip.parse::<IpAddr>().unwrap()));
        assert_eq!(found, want);
    }
}
