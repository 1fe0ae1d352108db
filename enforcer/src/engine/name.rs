//! Host names in their one canonical form.

use std::fmt;
use std::sync::Arc;

use enforcer_common::limits::NAME_BYTES;

/// A host name as names are compared: ASCII lower-case, no trailing dot, labels of 1 to 63 bytes, at most
/// 253 bytes together (on the wire; escapes make the text longer). Any byte that is not printable ASCII, and
/// a dot or backslash inside a label, stands as `\DDD` (RFC 1035, 5.1), so a name is safe to print and two
/// different names never look the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the name is empty")]
    Empty,
    #[error("the name is longer than {NAME_BYTES} bytes")]
    TooLong,
    #[error("a label (the part between two dots) is empty")]
    EmptyLabel,
    #[error("a label (the part between two dots) is longer than 63 bytes")]
    LongLabel,
    #[error("a backslash is followed by neither three digits up to 255 nor one other character")]
    Escape,
}

impl Name {
    /// From the labels of a DNS message, most specific first, without the root's empty one.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut text = String::with_capacity(64);
        let mut wire = 1; // the root's length byte
        for label in labels {
            if label.is_empty() {
                return Err(NameError::EmptyLabel);
            }
            if label.len() > 63 {
                return Err(NameError::LongLabel);
            }
            wire += 1 + label.len();
            if wire > NAME_BYTES + 2 {
                return Err(NameError::TooLong);
            }
            if !text.is_empty() {
                text.push('.');
            }
            push_label(&mut text, label);
        }
        if text.is_empty() { Err(NameError::Empty) } else { Ok(Self(text.into())) }
    }

    /// From text as people write it, `WWW.Example.COM.`, or as a name prints itself: escapes are read as in
    /// zone files, so a name copied from an event means the name of the event.
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        let mut labels = split_labels(text.as_bytes())?;
        if labels.len() > 1 && labels.last().is_some_and(Vec::is_empty) {
            labels.pop(); // the trailing dot
        }
        match labels.as_slice() {
            [only] if only.is_empty() => Err(NameError::Empty),
            all => Self::from_labels(all.iter().map(Vec::as_slice)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As it stands in a DNS message, uncompressed.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut wire = Vec::with_capacity(self.0.len() + 2);
        for label in split_labels(self.0.as_bytes()).unwrap_or_default() {
            wire.push(u8::try_from(label.len()).unwrap_or(63));
            wire.extend(label);
        }
        wire.push(0);
        wire
    }
}

fn push_label(text: &mut String, label: &[u8]) {
    for &byte in label {
        match byte.to_ascii_lowercase() {
            plain @ 0x21..=0x7e if plain != b'.' && plain != b'\\' => text.push(char::from(plain)),
            other => {
                let digit = |n: u8| char::from(b'0' + n % 10);
                text.extend(['\\', digit(other / 100), digit(other / 10), digit(other)]);
            }
        }
    }
}

/// Splits at the dots that are not escaped and reads the escapes. Always at least one label.
fn split_labels(mut text: &[u8]) -> Result<Vec<Vec<u8>>, NameError> {
    let mut labels = vec![Vec::new()];
    while let [byte, rest @ ..] = text {
        text = rest;
        let byte = match byte {
            b'.' => {
                labels.push(Vec::new());
                continue;
            }
            b'\\' => {
                let (byte, rest) = read_escape(rest).ok_or(NameError::Escape)?;
                text = rest;
                byte
            }
            plain => *plain,
        };
        if let Some(label) = labels.last_mut() {
            label.push(byte);
        }
    }
    Ok(labels)
}

/// What follows a backslash: `DDD` in decimal, or one character that is not a digit.
fn read_escape(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [a, b, c, rest @ ..] if [a, b, c].iter().all(|d| d.is_ascii_digit()) => {
            let value = [a, b, c].iter().fold(0, |n, d| n * 10 + u32::from(**d - b'0'));
            Some((u8::try_from(value).ok()?, rest))
        }
        [byte, rest @ ..] if !byte.is_ascii_digit() => Some((*byte, rest)),
        _ => None,
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(input: &str) -> Result<String, NameError> {
        Name::from_text(input).map(|name| name.as_str().to_owned())
    }

    #[test]
    fn rows() {
        let rows = [
            ("example.com", Ok("example.com")),
            ("WWW.Example.COM.", Ok("www.example.com")),
            ("_dns._TCP.x", Ok("_dns._tcp.x")),
            ("xn--BCHER-kva.example", Ok("xn--bcher-kva.example")),
            ("bücher.example", Ok(r"b\195\188cher.example")),
            ("a b", Ok(r"a\032b")),
            (r"a\.b.c", Ok(r"a\046b.c")),
            (r"a\046b.c", Ok(r"a\046b.c")),
            (r"a\\b", Ok(r"a\092b")),
            (r"\065.\097", Ok("a.a")),
            (r"a\.", Ok(r"a\046")),
            ("", Err(NameError::Empty)),
            (".", Err(NameError::Empty)),
            ("..", Err(NameError::EmptyLabel)),
            (".a", Err(NameError::EmptyLabel)),
            ("a..b", Err(NameError::EmptyLabel)),
            ("a..", Err(NameError::EmptyLabel)),
            ("a\\", Err(NameError::Escape)),
            (r"a\1", Err(NameError::Escape)),
            (r"a\256", Err(NameError::Escape)),
            (r"a\12x", Err(NameError::Escape)),
        ];
        for (input, want) in rows {
            assert_eq!(text(input), want.map(str::to_owned), "{input}");
        }
    }

    #[test]
    fn lengths_are_those_of_the_wire() {
        let label = "a".repeat(63);
        assert!(Name::from_text(&label).is_ok());
        assert_eq!(Name::from_text(&format!("{label}a")), Err(NameError::LongLabel));
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert_eq!(longest.len(), NAME_BYTES);
        assert!(Name::from_text(&longest).is_ok());
        assert!(Name::from_text(&format!("{longest}.")).is_ok());
        assert_eq!(Name::from_text(&format!("{longest}a")), Err(NameError::TooLong));
        let escaped = [[0u8; 63].as_slice(), &[0; 63], &[0; 63], &[0; 61]];
        assert!(Name::from_labels(escaped).is_ok(), "escapes do not count");
    }

    fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![any::<u8>(), prop::sample::select(b"aA.\\0 ".as_slice())];
        prop::collection::vec(prop::collection::vec(byte, 1..5), 1..5)
    }

    fn of(labels: &[Vec<u8>]) -> Name {
        Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap()
    }

    proptest! {
        #[test]
        fn two_names_look_the_same_only_if_they_are(a in labels(), b in labels()) {
            let same = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.eq_ignore_ascii_case(b));
            prop_assert_eq!(of(&a) == of(&b), same);
        }

        #[test]
        fn a_name_is_printable_and_reads_back_as_itself(a in labels()) {
            let name = of(&a);
            prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()));
            prop_assert_eq!(Name::from_text(name.as_str()), Ok(name));
        }

        #[test]
        fn any_text_is_a_name_or_an_error(input in "\\PC*") {
            if let Ok(name) = Name::from_text(&input) {
                prop_assert_eq!(Name::from_text(name.as_str()), Ok(name));
            }
        }
    }
}
