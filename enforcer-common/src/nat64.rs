//! IPv6 addresses behind which there is an IPv4 host, by its address in them.
//!
//! | form | | IPv4 address in bits |
//! |---|---|---|
//! | `::/96` | IPv4-compatible (RFC 4291, 2.5.5.1), but for `::` and `::1` | 96 to 127 |
//! | `64:ff9b::/96` | NAT64, the well-known prefix (RFC 6052, 2.1) | 96 to 127 |
//! | `2002::/16` | 6to4 (RFC 3056, 2): the router that has the rest behind it | 16 to 47 |
//! | a prefix of [`own`] | NAT64 and IPv4-translatable, of the network (RFC 6052, 2.2) | behind the prefix, bits 64 to 71 left out |
//!
//! IPv4-mapped addresses are how a key keeps IPv4, so nothing is to be done for them. What is not known here (Teredo, ISATAP) is an
//! IPv6 host like any other.

use crate::limits::NAT64_PREFIXES;

/// The lengths that a prefix can have (RFC 6052, 2.2).
pub const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

/// Prefixes of this host's network, beside those that are the same everywhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes([Prefix; NAT64_PREFIXES]);

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    high: u64,
    low: u64,
    /// One of `LENGTHS`, or 0: there is none, nor behind it.
    length: u64,
}

impl Prefix {
    const NONE: Self = Self { high: 0, low: 0, length: 0 };

    /// `None`: no such prefix can be. Bits behind it do not matter.
    pub fn new(network: [u8; 16], length: u8) -> Option<Self> {
        if !LENGTHS.contains(&length) {
            return None;
        }
        let (high, low) = halves(network);
        // All that is IPv4-mapped would be below it, or nothing that leaves the link.
        let takes_others = high >> (64 - length.min(64)) == 0 || high >> 56 == 0xff || high >> 54 == 0x3fa;
        // In bits 64 to 71 there is never anything.
        let can_be = !takes_others && (length < 96 || low >> 56 == 0);
        can_be.then_some(Self { high, low, length: length.into() })
    }

    #[inline(always)]
    fn embedded(&self, high: u64, low: u64) -> Option<u32> {
        let Self { high: own_high, low: own_low, length } = *self;
        if length == 96 {
            return (high == own_high && low >> 32 == own_low >> 32).then_some(low as u32);
        }
        if (high ^ own_high) >> (64 - length) != 0 {
            return None;
        }
        // What there is of it before bits 64 to 71, and behind them.
        let before = if length == 64 { 0 } else { (high << length) >> 32 };
        let behind = if length == 32 { 0 } else { (low << 8) >> (96 - length) };
        Some((before | behind) as u32)
    }
}

impl Prefixes {
    pub const NONE: Self = Self([Prefix::NONE; NAT64_PREFIXES]);

    /// `None`: there are too many.
    pub fn new(prefixes: impl IntoIterator<Item = Prefix>) -> Option<Self> {
        let mut all = Self::NONE;
        let mut places = all.0.iter_mut();
        for prefix in prefixes {
            *places.next()? = prefix;
        }
        Some(all)
    }
}

/// The IPv4 address behind this one, and how many bits are before it.
#[inline(always)]
fn form(high: u64, low: u64, own: &Prefixes) -> Option<(u32, u64)> {
    if low >> 32 == 0 && (high == 0x0064_ff9b_0000_0000 || (high == 0 && low > 1)) {
        return Some((low as u32, 96));
    }
    if high >> 48 == 0x2002 {
        return Some(((high >> 16) as u32, 16));
    }
    for prefix in &own.0 {
        if prefix.length == 0 {
            break;
        }
        if let Some(v4) = prefix.embedded(high, low) {
            return Some((v4, prefix.length));
        }
    }
    None
}

/// The IPv4 network behind this one, and its leading bits. `None`: it has other addresses as well, or no IPv4 ones.
pub fn network(network: [u8; 16], length: u8, own: &Prefixes) -> Option<([u8; 4], u8)> {
    let (high, low) = halves(network);
    let (v4, before) = form(high, low, own)?;
    let bits = length.checked_sub(before as u8)?;
    let left_out = if (32..=64).contains(&before) { length.saturating_sub(64).min(8) } else { 0 };
    Some((v4.to_be_bytes(), (bits - left_out).min(32)))
}

#[inline(always)]
fn halves(octets: [u8; 16]) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, rest @ ..] = octets;
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes(rest))
}

/// The IPv4 address behind this one as an IPv4-mapped one, or else itself.
#[inline(always)]
pub(crate) fn canonical(v6: [u8; 16]) -> [u8; 16] {
    let (high, low) = halves(v6);
    let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) =
        (here::high(high, low).to_be_bytes(), here::low(high, low).to_be_bytes());
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The halves of what is canonical.
#[inline(always)]
fn folded(high: u64, low: u64, own: &Prefixes) -> (u64, u64) {
    match form(high, low, own) {
        Some((v4, _)) => (0, 0xffff << 32 | u64::from(v4)),
        None => (high, low),
    }
}

/// In the kernel: read-only data that the daemon writes when it loads the programs, so that the verifier knows what is in it and
/// leaves out what is not. Two global functions, of words and with a word as its result: the verifier follows what happens in
/// them once, and what comes after them not once for each form.
#[cfg(target_arch = "bpf")]
mod here {
    use core::ptr;

    use super::{Prefixes, folded};

    #[unsafe(no_mangle)]
    static NAT64: Prefixes = Prefixes::NONE;

    #[inline(always)]
    fn own() -> Prefixes {
        // SAFETY: the daemon has written it before the program was loaded; it is not what the compiler sees here.
        unsafe { ptr::read_volatile(&raw const NAT64) }
    }

    #[inline(always)]
    pub fn high(high: u64, low: u64) -> u64 {
        canonical_high(high, low)
    }

    #[inline(always)]
    pub fn low(high: u64, low: u64) -> u64 {
        canonical_low(high, low)
    }

    #[unsafe(no_mangle)]
    #[inline(never)]
    extern "C" fn canonical_high(high: u64, low: u64) -> u64 {
        folded(high, low, &own()).0
    }

    #[unsafe(no_mangle)]
    #[inline(never)]
    extern "C" fn canonical_low(high: u64, low: u64) -> u64 {
        folded(high, low, &own()).1
    }
}

/// In a process: what its settings said at its start. An address means the same wherever in it one is read.
#[cfg(not(target_arch = "bpf"))]
mod here {
    extern crate std;

    use std::sync::OnceLock;

    use super::{Prefixes, folded};

    static NAT64: OnceLock<Prefixes> = OnceLock::new();

    #[inline]
    pub fn own() -> &'static Prefixes {
        NAT64.get().unwrap_or(&Prefixes::NONE)
    }

    /// Once, before anything reads an address: later the first ones stay.
    pub fn set(prefixes: Prefixes) {
        let _ = NAT64.set(prefixes);
    }

    #[inline]
    pub fn high(high: u64, low: u64) -> u64 {
        folded(high, low, own()).0
    }

    #[inline]
    pub fn low(high: u64, low: u64) -> u64 {
        folded(high, low, own()).1
    }
}

#[cfg(not(target_arch = "bpf"))]
pub use here::{own, set};

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::Ipv6Addr;

    use super::*;

    fn v4(text: &str, own: &Prefixes) -> Option<[u8; 4]> {
        let (high, low) = halves(octets(text));
        form(high, low, own).map(|(v4, _)| v4.to_be_bytes())
    }

    fn octets(text: &str) -> [u8; 16] {
        text.parse::<Ipv6Addr>().unwrap().octets()
    }

    /// The examples of RFC 6052, 2.4, and what is beside them.
    #[test]
    fn the_address_behind_a_prefix() {
        let rows = [
            ("2001:db8::", 32, "2001:db8:c000:221::", true),
            ("2001:db8:100::", 40, "2001:db8:1c0:2:21::", true),
            ("2001:db8:122::", 48, "2001:db8:122:c000:2:2100::", true),
            ("2001:db8:122:300::", 56, "2001:db8:122:3c0:0:221::", true),
            ("2001:db8:122:344::", 64, "2001:db8:122:344:c0:2:2100::", true),
            ("2001:db8:122:344::", 96, "2001:db8:122:344::192.0.2.33", true),
            ("64:ff9b:1::", 96, "64:ff9b:1::192.0.2.33", true),
            // A suffix, and something in bits 64 to 71, that a translator may ignore.
            ("2001:db8:122:344::", 64, "2001:db8:122:344:ffc0:2:21ff:ffff", true),
            ("2001:db8:122:344::", 96, "2001:db8:122:344:0:1:192.0.2.33", false),
            ("2001:db8:122:344::", 96, "2001:db8:122:345::192.0.2.33", false),
            ("2001:db8:122:344::", 64, "2001:db8:122:345:c0:2:2100::", false),
            ("2001:db8:100::", 40, "2001:db8:2c0:2:21::", false),
        ];
        for (prefix, length, text, is_behind) in rows {
            let own = Prefixes::new(Prefix::new(octets(prefix), length)).unwrap();
            let want = is_behind.then_some([192, 0, 2, 33]);
            assert_eq!(v4(text, &own), want, "{text} of {prefix}/{length}");
            assert_eq!(v4(text, &Prefixes::NONE), None, "{text}");
        }
    }

    #[test]
    fn the_last_of_many_counts_and_what_is_the_same_everywhere() {
        let prefix =
            |third: u16| Prefix::new(Ipv6Addr::new(0x2001, 0xdb8, third, 0, 0, 0, 0, 0).octets(), 96);
        let many = |count: u16| Prefixes::new((0..count).map(|third| prefix(third).unwrap()));
        let own = many(NAT64_PREFIXES as u16).unwrap();
        assert_eq!(v4("2001:db8:3::192.0.2.33", &own), Some([192, 0, 2, 33]));
        assert_eq!(v4("64:ff9b::192.0.2.33", &own), Some([192, 0, 2, 33]));
        assert_eq!(many(NAT64_PREFIXES as u16 + 1), None);
    }

    #[test]
    fn networks_behind_a_prefix() {
        let own = Prefixes::new(Prefix::new(octets("2001:db8:100::"), 40)).unwrap();
        let rows = [
            ("64:ff9b::192.0.2.0", 120, Some(24)),
            ("64:ff9b::", 96, Some(0)),
            ("64:ff9b::", 95, None),
            ("::192.0.2.0", 120, Some(24)),
            ("2002:c000:200::", 40, Some(24)),
            ("2002:c000:200::", 128, Some(32)),
            ("2002::", 15, None),
            ("2001:db8:1c0:2::", 64, Some(24)),
            ("2001:db8:1c0:2::", 70, Some(24)),
            ("2001:db8:1c0:2::", 73, Some(25)),
            ("2001:db8:1c0:2::", 128, Some(32)),
            ("2001:db8::", 32, None),
            ("::", 128, None),
            ("::", 0, None),
        ];
        for (text, length, want) in rows {
            assert_eq!(network(octets(text), length, &own).map(|(_, bits)| bits), want, "{text}/{length}");
        }
    }

    #[test]
    fn prefixes_that_cannot_be() {
        for length in 0..=128 {
            assert_eq!(
                Prefix::new(octets("2001:db8::"), length).is_some(),
                LENGTHS.contains(&length),
                "{length}"
            );
        }
        let rows = [
            ("2001:db8::100:0:0:0", 96),
            ("::", 32),
            ("::", 64),
            ("::", 96),
            ("::ffff:0:0", 96),
            ("::1", 48),
        ];
        for (text, length) in rows.into_iter().chain([("fe80::", 64), ("fe80:0:0:1::", 96), ("ff02::", 32)]) {
            assert_eq!(Prefix::new(octets(text), length), None, "{text}/{length}");
        }
        assert!(Prefix::new(octets("fd00::"), 32).is_some() && Prefix::new(octets("fec0::"), 32).is_some());
        assert_eq!(own(), &Prefixes::NONE);
    }
}
