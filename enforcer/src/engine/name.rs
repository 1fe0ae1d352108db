//! Host names in their one canonical form.

use std::fmt;
use std::sync::Arc;

use enforcer_common::limits::NAME_BYTES;

/// A host name as names are compared: ASCII lower-case, no trailing dot, 1 to 253 bytes, labels of 1 to 63
/// bytes. Any byte that is not printable ASCII, and a dot or backslash inside a label, stands as `\DDD`
/// (RFC 1035, 5.1), so a name is safe to print and two different names never look the same.
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
}

impl Name {
    /// From the labels of a DNS message, most specific first.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut text = String::new();
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

    /// From text as people write it: `WWW.Example.COM.`
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        Self::from_labels(text.split('.').map(str::as_bytes))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn push_label(text: &mut String, label: &[u8]) {
    for &byte in label {
        match byte.to_ascii_lowercase() {
            b'.' | b'\\' => text.push_str(&format!("\\{byte:03}")),
            plain @ 0x21..=0x7e => text.push(char::from(plain)),
            other => text.push_str(&format!("\\{other:03}")),
        }
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
