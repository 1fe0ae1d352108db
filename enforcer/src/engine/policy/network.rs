//! One network of a rule.

use std::net::{IpAddr, Ipv6Addr};

use enforcer_common::nat64::{self, Prefixes};
use ipnetwork::{IpNetwork, Ipv4Network};

use super::diagnostic::quote;
use super::pattern::Refusal;

/// Reads `203.0.113.0/24`, `2001:db8::/32`, or one address. What is not exactly one network is refused: host
/// bits are more often a slip than meant, and IPv6 spellings of IPv4 networks never match a canonical address.
pub(super) fn parse(text: &str) -> Result<IpNetwork, Refusal> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else { return Err(not_an_address(text, address)) };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => longest,
        Some(digits) => match digits.parse::<u8>() {
            Ok(prefix) if prefix <= longest && digits.bytes().all(|b| b.is_ascii_digit()) => prefix,
            _ => return Err(not_a_prefix(text, longest)),
        },
    };
    let Ok(network) = IpNetwork::new(address, prefix) else { return Err(not_a_prefix(text, longest)) };
    if let Some(v4) = as_v4(&network, nat64::own()) {
        return Err(Refusal::new(
            format!("{} is an IPv6 spelling of an IPv4 network", quote(text)),
            format!("write `{v4}`: it covers the IPv4-mapped, NAT64 and 6to4 spellings, too"),
        ));
    }
    if network.network() != address {
        let whole =
            IpNetwork::new(network.network(), prefix).map_or_else(|_| String::new(), |n| n.to_string());
        return Err(Refusal::new(
            format!("{} has bits set behind its prefix", quote(text)),
            format!("did you mean `{whole}`, or the one host `{address}`?"),
        ));
    }
    Ok(network)
}

/// The IPv4 network that an IPv6 spelling (IPv4-mapped, or one of `nat64`) stands for.
pub fn as_v4(network: &IpNetwork, own: &Prefixes) -> Option<Ipv4Network> {
    let IpNetwork::V6(v6) = network else { return None };
    let (v4, prefix) = match v6.network().to_ipv4_mapped().zip(v6.prefix().checked_sub(96)) {
        Some((v4, prefix)) => (v4, prefix),
        None => {
            let (v4, prefix) = nat64::network(v6.network().octets(), v6.prefix(), own)?;
            (v4.into(), prefix)
        }
    };
    let network = Ipv4Network::new(v4, prefix).ok()?.network();
    Ipv4Network::new(network, prefix).ok()
}

fn not_an_address(text: &str, address: &str) -> Refusal {
    if address.bytes().any(|b| b.is_ascii_alphabetic()) && !address.contains(':') {
        return Refusal::new(
            format!("{} is not a network", quote(text)),
            "host names and their globs stand under `hosts`",
        );
    }
    Refusal::new(
        format!("{} is not a network", quote(text)),
        "write an address and a prefix, as in `203.0.113.0/24` or `2001:db8::/32`, or one address",
    )
}

fn not_a_prefix(text: &str, longest: u8) -> Refusal {
    Refusal::new(
        format!("the prefix of {} is not a number from 0 to {longest}", quote(text)),
        "write how many leading bits are fixed, as in `203.0.113.0/24` or `2001:db8::/32`",
    )
}

/// Whether the network and the loopback addresses of its family have an address in common.
pub(super) fn touches_loopback(network: &IpNetwork) -> bool {
    match network {
        IpNetwork::V4(v4) => v4.contains([127, 0, 0, 1].into()) || v4.network().is_loopback(),
        IpNetwork::V6(v6) => v6.contains(Ipv6Addr::LOCALHOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_canonical_or_refused() {
        let rows = [
            ("203.0.113.0/24", Ok("203.0.113.0/24")),
            ("203.0.113.7", Ok("203.0.113.7/32")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("2001:DB8::/32", Ok("2001:db8::/32")),
            ("::/0", Ok("::/0")),
            ("2001:db8::1", Ok("2001:db8::1/128")),
            ("203.0.113.7/24", Err("did you mean `203.0.113.0/24`, or the one host `203.0.113.7`?")),
            ("2001:db8::1/32", Err("did you mean `2001:db8::/32`, or the one host `2001:db8::1`?")),
            ("::ffff:203.0.113.0/120", Err("write `203.0.113.0/24`")),
            ("::ffff:0:0/96", Err("write `0.0.0.0/0`")),
            ("64:ff9b::203.0.113.0/120", Err("write `203.0.113.0/24`")),
            ("2002:cb00:7100::/40", Err("write `203.0.113.0/24`")),
            ("::203.0.113.7", Err("write `203.0.113.7/32`")),
            ("::ffff:203.0.113.7", Err("write `203.0.113.7/32`")),
            ("203.0.113.0/33", Err("as in")),
            ("203.0.113.0/255.255.255.0", Err("as in")),
            ("203.0.113.0/+24", Err("as in")),
            ("203.0.113.0/", Err("as in")),
            ("203.0.113.0/24/24", Err("as in")),
            ("2001:db8::/129", Err("as in")),
            ("203.0.113", Err("as in")),
            ("203.0.113.0-203.0.113.9", Err("as in")),
            ("fe80::1%eth0", Err("as in")),
            ("", Err("as in")),
            ("ads.example.com", Err("`hosts`")),
        ];
        for (text, want) in rows {
            match (parse(text), want) {
                (Ok(network), Ok(want)) => assert_eq!(network.to_string(), want, "{text}"),
                (Err(refusal), Err(want)) => assert!(refusal.hint.contains(want), "{text}: {}", refusal.hint),
                (got, want) => panic!("{text}: {got:?}, expected {want:?}"),
            }
        }
    }

    #[test]
    fn loopback_rows() {
        let rows = [
            ("127.0.0.0/8", true),
            ("127.5.0.0/16", true),
            ("0.0.0.0/1", true),
            ("::1", true),
            ("::/16", true),
            ("128.0.0.0/8", false),
            ("2001:db8::/32", false),
            ("10.0.0.0/8", false),
        ];
        for (text, want) in rows {
            assert_eq!(touches_loopback(&parse(text).unwrap()), want, "{text}");
        }
    }
}
