//! The canonical address: one 16-byte key for every way to write a destination.
//!
//! An IPv4 host `a.b.c.d` is the same key whether it is written as such, as an IPv4-mapped address, or as one of the IPv6
//! addresses behind which there is an IPv4 host: see [`crate::nat64`].

use core::net::{IpAddr, Ipv6Addr};

use crate::nat64;

/// A canonical destination address. IPv4 is kept as its IPv4-mapped IPv6 form.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr([u8; 16]);

const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Addr {
    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]])
    }

    #[inline(always)]
    pub fn from_v6(v6: [u8; 16]) -> Self {
        Self(nat64::canonical(v6))
    }

    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        self.0
    }

    /// The IPv4 form, if this address is one.
    #[inline(always)]
    pub fn as_v4(&self) -> Option<[u8; 4]> {
        match self.0 {
            [p @ .., a, b, c, d] if p == MAPPED => Some([a, b, c, d]),
            _ => None,
        }
    }

    /// Whether whoever gives this host its own addresses is asked here (DHCP, RFC 2131, and DHCPv6, RFC 8415): to
    /// everybody on the link, not to one server.
    #[inline(always)]
    pub fn gives_leases(&self, port: u16) -> bool {
        const V6: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
        (port == 67 && self.0 == Self::from_v4([255; 4]).0) || (port == 547 && self.0 == V6)
    }

    /// Addresses that no DNS answer may ever deny: denying them harms the host itself, and whoever owns
    /// a denied name chooses what it resolves to. Loopback, unspecified (a connect to it means loopback),
    /// link-local (169.254.169.254 included), multicast, limited broadcast.
    #[inline(always)]
    pub fn is_never_denied(&self) -> bool {
        match self.as_v4() {
            Some([a, b, _, _]) => a == 0 || a == 127 || (a == 169 && b == 254) || a >= 224,
            None => {
                let o = &self.0;
                let zeros = matches!(o, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, _]);
                (zeros && o[15] <= 1) || (o[0] == 0xfe && o[1] & 0xc0 == 0x80) || o[0] == 0xff
            }
        }
    }
}

/// Of this host itself: loopback, or unspecified, which a connect takes for loopback. Asked of an address as it was written: the
/// loopback address behind a NAT64 prefix is somebody else's.
#[inline(always)]
pub fn is_loopback(octets: &[u8; 16]) -> bool {
    match *octets {
        [p @ .., a, b, c, d] if p == MAPPED => a == 127 || (a == 0 && b == 0 && c == 0 && d == 0),
        [p @ .., last] => p == [0; 15] && last <= 1,
    }
}

impl From<Addr> for IpAddr {
    /// IPv4-mapped as IPv4.
    #[inline]
    fn from(addr: Addr) -> Self {
        Ipv6Addr::from(addr.0).to_canonical()
    }
}

impl From<IpAddr> for Addr {
    #[inline]
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::net::IpAddr;

    fn canonical(text: &str) -> Addr {
        match text.parse::<IpAddr>().unwrap() {
            IpAddr::V4(v4) => Addr::from_v4(v4.octets()),
            IpAddr::V6(v6) => Addr::from_v6(v6.octets()),
        }
    }

    fn written(text: &str) -> [u8; 16] {
        match text.parse::<IpAddr>().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        }
    }

    #[test]
    fn every_spelling_of_an_ipv4_host_is_one_key() {
        let key = Addr::from_v4([192, 0, 2, 1]);
        for text in ["192.0.2.1", "::ffff:192.0.2.1", "::192.0.2.1", "64:ff9b::192.0.2.1", "2002:c000:201::1"]
        {
            assert_eq!(canonical(text), key, "{text}");
        }
        for text in ["192.0.2.2", "64:ff9b:1::192.0.2.1", "2001:db8::c000:201", "::1:192.0.2.1", "::", "::1"]
        {
            assert_ne!(canonical(text), key, "{text}");
        }
        assert_eq!(key.as_v4(), Some([192, 0, 2, 1]));
        assert_eq!(canonical("2001:db8::1").as_v4(), None);
        assert_eq!((canonical("::").as_v4(), canonical("::1").as_v4()), (None, None));
    }

    #[test]
    fn the_host_itself_and_who_gives_it_addresses() {
        for text in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"] {
            assert!(is_loopback(&written(text)), "{text}");
        }
        let others = ["0.0.0.1", "128.0.0.1", "169.254.169.254", "::2", "fe80::1", "::1:0"];
        for text in others.into_iter().chain(["64:ff9b::127.0.0.1", "::127.0.0.1", "2002:7f00:1::"]) {
            assert!(!is_loopback(&written(text)), "{text}");
        }
        let rows = [
            ("255.255.255.255", 67, true),
            ("ff02::1:2", 547, true),
            ("255.255.255.255", 68, false),
            ("ff02::1:2", 67, false),
            ("192.0.2.1", 67, false),
            ("ff02::1:3", 547, false),
        ];
        for (text, port, want) in rows {
            assert_eq!(canonical(text).gives_leases(port), want, "{text} {port}");
        }
    }

    #[test]
    fn never_denied_rows() {
        let rows = [
            ("127.0.0.1", true),
            ("127.255.255.254", true),
            ("::1", true),
            ("::", true),
            ("0.0.0.0", true),
            ("0.1.2.3", true),
            ("169.254.169.254", true),
            ("169.254.0.1", true),
            ("169.253.0.1", false),
            ("fe80::1", true),
            ("febf::1", true),
            ("fec0::1", false),
            ("224.0.0.1", true),
            ("239.255.255.250", true),
            ("255.255.255.255", true),
            ("ff02::1", true),
            ("::ffff:127.0.0.1", true),
            ("64:ff9b::127.0.0.1", true),
            ("::2", true),
            // 0.0.0.0/8, IPv4-compatible.
            ("::1:1", true),
            ("128.0.0.1", false),
            ("10.0.0.1", false),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
            ("fd00::1", false),
            ("223.255.255.255", false),
        ];
        for (text, want) in rows {
            assert_eq!(canonical(text).is_never_denied(), want, "{text}");
        }
    }
}
