//! A `struct sockaddr` of any family, as text.

use std::net::{Ipv4Addr, Ipv6Addr};

use enforcer_common::event::{AF_INET, AF_INET6};

use super::record::printable;

const AF_UNIX: u16 = 1;
/// Of a family that we do not know, so many bytes are shown.
const SHOWN: usize = 32;

/// What an address says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub family: u16,
    pub text: String,
    pub port: Option<u16>,
}

/// The bytes are the application's own: anything may be cut off, or be something else than it says.
pub fn read(bytes: &[u8]) -> Address {
    let Some((family, rest)) = bytes.split_first_chunk::<2>() else {
        return Address { family: 0, text: hex(bytes), port: None };
    };
    let family = u16::from_ne_bytes(*family);
    let ip = match family {
        AF_UNIX => return Address { family, text: path(rest), port: None },
        AF_INET => rest
            .get(2..6)
            .and_then(|ip| <[u8; 4]>::try_from(ip).ok())
            .map(|ip| Ipv4Addr::from(ip).to_string()),
        AF_INET6 => rest
            .get(6..22)
            .and_then(|ip| <[u8; 16]>::try_from(ip).ok())
            .map(|ip| Ipv6Addr::from(ip).to_string()),
        _ => None,
    };
    match (ip, rest.first_chunk::<2>()) {
        (Some(text), Some(port)) => Address { family, text, port: Some(u16::from_be_bytes(*port)) },
        _ => Address { family, text: hex(rest), port: None },
    }
}

/// unix(7): a path ends at its first NUL; a name in the abstract namespace begins with one and has the whole length.
fn path(bytes: &[u8]) -> String {
    match bytes.split_first() {
        None => String::new(),
        Some((0, name)) => format!("@{}", printable(name)),
        Some(_) => printable(bytes.split(|&byte| byte == 0).next().unwrap_or_default()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_read_and_nothing_is_believed() {
        let with = |family: u16, rest: &[u8]| [&family.to_ne_bytes()[..], rest].concat();
        let v6 = [&[1, 187, 0, 0, 0, 0][..], &Ipv6Addr::LOCALHOST.octets(), &[0; 4]].concat();
        for (bytes, family, text, port) in [
            (with(2, &[0, 80, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]), 2, "192.0.2.1", Some(80)),
            (with(10, &v6), 10, "::1", Some(443)),
            (with(1, b"/run/x.sock\0rest"), 1, "/run/x.sock", None),
            (with(1, b"\0name\0\n"), 1, "@name\\x00\\x0a", None),
            (with(1, b""), 1, "", None),
            (with(16, &[0, 0, 1, 2]), 16, "00000102", None),
            (with(2, &[0, 80, 192]), 2, "0050c0", None),
            (with(10, &v6[..20]), 10, "01bb00000000000000000000000000000000000000", None),
            (vec![7], 0, "07", None),
            (Vec::new(), 0, "", None),
        ] {
            let read = read(&bytes);
            let text = if text.starts_with("01bb") { hex(&bytes[2..]) } else { text.to_owned() };
            assert_eq!((read.family, read.text, read.port), (family, text, port), "{bytes:?}");
        }
        assert_eq!(read(&with(99, &[255; 200])).text.len(), 2 * SHOWN);
    }
}
