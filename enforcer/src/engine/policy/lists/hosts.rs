//! hosts(5), as people use it to block: `0.0.0.0 name`.

use std::net::IpAddr;

use super::super::diagnostic::quote;
use super::super::pattern::Refusal;
use super::domains::with_name;
use super::{Reader, Reason, Said, before};

/// What such files say about the host that reads them.
const OWN: [&[u8]; 11] = [
    b"localhost",
    b"localhost.localdomain",
    b"localhost4",
    b"localhost6",
    b"local",
    b"broadcasthost",
    b"ip6-localhost",
    b"ip6-loopback",
    b"ip6-localnet",
    b"ip6-mcastprefix",
    b"0.0.0.0",
];

pub(super) fn line(line: &[u8], reader: &mut Reader<'_>) {
    let line = before(line, |byte| byte == b'#');
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let Some(address) = words.next() else { return };
    let blocks = match address {
        // Nearly every line.
        b"0.0.0.0" | b"127.0.0.1" => true,
        other => match read(other) {
            Ok(address) => address.is_loopback() || address.is_unspecified(),
            Err(refusal) => return reader.mistake(refusal),
        },
    };
    let mut names = 0;
    for name in words {
        names += 1;
        if OWN.contains(&name) || name.starts_with(b"ip6-all") {
            reader.skip(Reason::OwnName);
        } else if !blocks {
            reader.skip(Reason::RealAddress);
        } else if let Err(refusal) = with_name(name, |domain| {
            reader.said(Said::Name { domain, itself: true, below: false, except: false });
        }) {
            reader.mistake(refusal);
        }
    }
    if names == 0 {
        reader.mistake(Refusal::new(
            format!("{} has no name beside it", quote(&String::from_utf8_lossy(address))),
            "write `0.0.0.0 tracker.example`",
        ));
    }
}

fn read(word: &[u8]) -> Result<IpAddr, Refusal> {
    let text = String::from_utf8_lossy(word);
    // A link-local address carries its interface: fe80::1%lo0.
    let address = text.split('%').next().unwrap_or(&text);
    address.parse().map_err(|_| {
        Refusal::new(
            format!("{} is not an address", quote(&text)),
            "a line is an address and names; a list of names alone is of the format \"domains\"",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::{ListFormat, tests};
    use super::*;

    #[test]
    fn rows() {
        let text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\nfe80::1%lo0 localhost\n\
                    ff02::1 ip6-allnodes\n0.0.0.0 0.0.0.0\n# words\n\n0.0.0.0 A.example # why\n\
                    127.0.0.1\tb.example c.example\r\n:: d.example\n192.0.2.7 router.example\n\
                    a.example\n0.0.0.0\n0.0.0.0 *.e.example\n0.0.0.0 b\u{fc}cher.example\n";
        let (said, tally) = tests::deny(ListFormat::Hosts, text);
        assert_eq!(said, ["a.example", "b.example", "c.example", "d.example", "xn--bcher-kva.example"]);
        let count = |reason| tally.skipped.get(&reason).copied().unwrap_or(0);
        assert_eq!((count(Reason::OwnName), count(Reason::RealAddress), count(Reason::Mistake)), (7, 1, 3));
        let warning = tally.warning().unwrap().to_string();
        assert!(
            warning.starts_with("warning: l.txt:12:1: 3 lines") && warning.contains("\"domains\""),
            "{warning}"
        );
    }
}
