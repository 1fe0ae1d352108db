//! The host's own addresses and resolvers: what a DNS answer must never be able to deny. And its namespaces.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use enforcer_common::Addr;
use nix::ifaddrs::getifaddrs;

/// Where resolvers stand: the C library's, and behind systemd-resolved's stub.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The host's own addresses and its resolvers', now.
pub fn protected() -> std::io::Result<HashSet<Addr>> {
    let mut addresses: HashSet<Addr> = own()?.collect();
    for path in RESOLV_CONF {
        if let Ok(text) = fs::read_to_string(Path::new(path)) {
            addresses.extend(resolvers(&text));
        }
    }
    Ok(addresses)
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
        Some(canonical(address.parse().ok()?))
    })
}

pub fn canonical(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => Addr::from_v4(v4.octets()),
        IpAddr::V6(v6) => Addr::from_v6(v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_include_loopback() {
        assert!(own().unwrap().any(|addr| addr == Addr::from_v4([127, 0, 0, 1])));
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
        let want = ["192.0.2.53", "2001:db8::53", "fe80::1"].map(|ip| canonical(ip.parse().unwrap()));
        assert_eq!(found, want);
    }
}
