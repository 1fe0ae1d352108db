//! The host's own addresses and resolvers: what a DNS answer must never be able to deny.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use enforcer_common::Addr;
use nix::ifaddrs::getifaddrs;

/// Where resolvers stand: the C library's, and behind systemd-resolved's stub.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The host's own addresses and its resolvers', now.
pub fn protected() -> std::io::Result<HashSet<Addr>> {
    let mut addresses: HashSet<Addr> = own()?.collect();
    addresses.extend(asked());
    Ok(addresses)
}

/// The host's resolvers, now.
pub fn asked() -> Vec<Addr> {
    let texts = RESOLV_CONF.iter().filter_map(|path| fs::read_to_string(Path::new(path)).ok());
    texts.flat_map(|text| resolvers(&text).collect::<Vec<_>>()).collect()
}

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
    fn resolv_conf_rows() {
        let text = "# comment\nnameserver 192.0.2.53\n\tnameserver\t2001:db8::53 # why\nnameserver fe80::1%eth0\n\
                    options edns0\nnameserver\nnameserver nonsense\nsearch nameserver.example\n";
        let found: Vec<Addr> = resolvers(text).collect();
        let want = ["192.0.2.53", "2001:db8::53", "fe80::1"].map(|ip| canonical(ip.parse().unwrap()));
        assert_eq!(found, want);
    }
}
