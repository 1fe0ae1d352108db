//! The zone: for each client names of its own, so that none finds denied what another has asked.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use enforcer_tests::servers::Server;

use super::asking::Client;

/// What a name looks like in the DNS.
pub(super) struct Shape {
    /// The end of the first label; the client's name is its beginning.
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) denied: bool,
    pub(super) addresses: Addresses,
    /// glibc asks for it.
    pub(super) by_libc: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Addresses {
    V4(u8),
    V6(u8),
    Both(u8),
    Many,
}

const fn shape(name: &'static str, kind: &'static str, denied: bool, addresses: Addresses) -> Shape {
    Shape { name, kind, denied, addresses, by_libc: true }
}

pub(super) const SHAPES: &[Shape] = &[
    shape("plain.bad", "A", true, Addresses::V4(1)),
    Shape { by_libc: false, ..shape("six.bad", "AAAA", true, Addresses::V6(2)) },
    // The last name of the chain is denied.
    shape("chain", "A", true, Addresses::V4(3)),
    Shape { by_libc: false, ..shape("longchain", "A", true, Addresses::V4(8)) },
    // Only one in its middle is.
    shape("middle", "A", true, Addresses::V4(4)),
    Shape { by_libc: false, ..shape("hints.bad", "HTTPS", true, Addresses::Both(5)) },
    shape("many.bad", "A", true, Addresses::Many),
    shape("good", "A", false, Addresses::V4(6)),
    shape("goodchain", "A", false, Addresses::V4(7)),
];

/// Aliases that every server follows, and those that only a resolver follows which asks again.
const SHORT: u8 = 4;
const LONG: u8 = 10;

impl Shape {
    /// Whether the server's answer goes to the chain's end.
    pub(super) fn is_answered_by(&self, server: Server) -> bool {
        let follows = [Server::Unbound, Server::UnboundFull, Server::Bind, Server::BindFull];
        self.name != "longchain" || follows.contains(&server)
    }

    /// Of the client in this place of the list.
    pub(super) fn addresses(&self, place: u8) -> Vec<IpAddr> {
        match self.addresses {
            Addresses::V4(n) => vec![v4(place, n)],
            Addresses::V6(n) => vec![v6(place, n)],
            Addresses::Both(n) => vec![v4(place, n), v6(place, n)],
            Addresses::Many => (0..64).map(|n| Ipv4Addr::new(198, 19, place, n).into()).collect(),
        }
    }
}

fn v4(place: u8, n: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, place, n).into()
}

fn v6(place: u8, n: u8) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, place.into(), 0, 0, 0, 0, n.into()).into()
}

/// The records that all clients ask for.
pub(super) fn zone(clients: &[Client]) -> String {
    let mut zone = String::new();
    for (place, client) in (0..).zip(clients) {
        let client = client.name;
        for shape in SHAPES {
            let name = format!("{client}-{}", shape.name);
            let owner = match shape.name {
                "chain" => chain(&mut zone, SHORT, &name, &format!("{client}-end.bad")),
                "longchain" => chain(&mut zone, LONG, &name, &format!("{client}-end-of-long.bad")),
                "middle" => {
                    chain(&mut zone, SHORT - 1, &format!("{name}.bad"), &format!("{client}-end-of-middle"))
                }
                "goodchain" => chain(&mut zone, SHORT, &name, &format!("{client}-end-of-goodchain")),
                _ => name.clone(),
            };
            if shape.name == "middle" {
                line(&mut zone, &name, "CNAME", &format!("{name}.bad"));
            }
            let addresses = shape.addresses(place);
            if let (true, [v4, v6]) = (shape.kind == "HTTPS", &addresses[..]) {
                line(&mut zone, &owner, "HTTPS", &format!("1 . alpn=h2 ipv4hint={v4} ipv6hint={v6}"));
                continue;
            }
            for address in addresses {
                let kind = if address.is_ipv4() { "A" } else { "AAAA" };
                line(&mut zone, &owner, kind, &address.to_string());
            }
        }
    }
    zone
}

/// So many aliases from one name to another, which is returned.
fn chain(zone: &mut String, length: u8, from: &str, to: &str) -> String {
    let mut alias = from.to_owned();
    for n in 1..length {
        let next = format!("alias{n}-{}", from.replace('.', "-"));
        line(zone, &alias, "CNAME", &next);
        alias = next;
    }
    line(zone, &alias, "CNAME", to);
    to.to_owned()
}

fn line(zone: &mut String, owner: &str, kind: &str, data: &str) {
    let _ = writeln!(zone, "{owner} {kind} {data}");
}
