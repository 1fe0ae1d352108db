//! A network or an address a line.

use super::super::network;
use super::{Reader, Said, before};

pub(super) fn line(line: &[u8], reader: &mut Reader<'_>) {
    let line = before(line, |byte| matches!(byte, b'#' | b';'));
    if line.is_empty() {
        return;
    }
    let Ok(text) = std::str::from_utf8(line) else { return reader.not_utf8() };
    match network::parse(text) {
        Ok(network) => reader.said(Said::Network(network)),
        Err(refusal) => reader.mistake(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ListFormat, Reason, tests};

    #[test]
    fn rows() {
        let text = "; words\n# words\n\n192.0.2.0/24 ; SBL1\r\n2001:db8::/32\n198.51.100.7 # why\n\
                    192.0.2.1/24\na.example\n::ffff:192.0.2.1\n";
        let (said, tally) = tests::deny(ListFormat::Networks, text);
        assert_eq!(said, ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"]);
        assert_eq!((tally.networks, tally.skipped[&Reason::Mistake]), (3, 3));
        assert!(tally.warning().unwrap().to_string().starts_with("warning: l.txt:7:1: 3 lines"));
    }
}
