//! One host pattern of a rule.

use std::fmt;
use std::net::IpAddr;

use globset::{ErrorKind, Glob, GlobBuilder};
use ipnetwork::IpNetwork;

use super::diagnostic::{escape, quote};
use super::{GLOB_NESTING, PATTERN_BYTES};
use crate::engine::name::{Name, NameError};

/// A host pattern in canonical form: lower-case, IDNs as `xn--`, no trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// `example.com`
    Exact(Name),
    /// `.example.com` (with the apex) or `*.example.com` (what is below it, at any depth).
    Suffix { domain: Name, apex: bool },
    /// Everything else: a glob whose `*` crosses dots.
    Glob(Glob),
}

/// Why text is no pattern or no network, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
    pub hint: String,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

impl Pattern {
    /// The one name that it spells out.
    pub fn literal(&self) -> Option<&Name> {
        match self {
            Self::Exact(name) | Self::Suffix { domain: name, apex: true } => Some(name),
            Self::Suffix { .. } | Self::Glob(_) => None,
        }
    }

    pub fn new(text: &str) -> Result<Self, Refusal> {
        refuse_unprintable(text)?;
        refuse_other_things(text)?;
        let ascii = in_ascii(text)?.to_ascii_lowercase();
        let canonical = ascii.strip_suffix('.').unwrap_or(&ascii);
        refuse_characters(canonical)?;
        if canonical.is_empty() || canonical == "." || canonical.contains("..") {
            return Err(bad_name(text, NameError::EmptyLabel));
        }
        let name = |plain| Name::from_text(plain).map_err(|error| bad_name(text, error));
        match (canonical.strip_prefix("*."), canonical.strip_prefix('.')) {
            (Some(domain), _) if !has_meta(domain) => Ok(Self::Suffix { domain: name(domain)?, apex: false }),
            (_, Some(domain)) if !has_meta(domain) => Ok(Self::Suffix { domain: name(domain)?, apex: true }),
            (_, Some(glob)) => Err(Refusal::new(
                format!(
                    "{} begins with a dot and has a wildcard: no host name begins with a dot",
                    quote(text)
                ),
                format!("write {} for the names and what is below them", quote(&format!("{{,*.}}{glob}"))),
            )),
            _ if has_meta(canonical) => glob(text, canonical).map(Self::Glob),
            _ => Ok(Self::Exact(name(canonical)?)),
        }
    }

    /// Whether every name matches, or nearly: the pattern has nothing but wildcards.
    pub(super) fn is_everything(&self) -> bool {
        matches!(self, Self::Glob(glob) if glob.glob().contains('*') && glob.glob().chars().all(|c| "*?.".contains(c)))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Suffix { domain, apex: true } => write!(f, ".{domain}"),
            Self::Suffix { domain, apex: false } => write!(f, "*.{domain}"),
            Self::Glob(glob) => write!(f, "{glob}"),
        }
    }
}

fn has_meta(text: &str) -> bool {
    text.contains(['*', '?', '[', ']', '{', '}', ',', '!', '^'])
}

fn refuse_unprintable(text: &str) -> Result<(), Refusal> {
    if text.is_empty() {
        return Err(Refusal::new("the pattern is empty", "write a host name or a glob, or remove it"));
    }
    if text.len() > PATTERN_BYTES {
        return Err(Refusal::new(
            format!("the pattern has {} bytes, more than {PATTERN_BYTES}", text.len()),
            "host names have at most 253; write several shorter patterns",
        ));
    }
    if text.contains(char::is_whitespace) {
        return Err(Refusal::new(
            format!("{} has a space in it", quote(text)),
            "write one pattern a string, without spaces",
        ));
    }
    if escape(text) != text {
        return Err(Refusal::new(
            format!("{} has a character that does not print", quote(text)),
            "remove it: no host name has one",
        ));
    }
    Ok(())
}

/// What people paste where a host name belongs.
fn refuse_other_things(text: &str) -> Result<(), Refusal> {
    if let Some((_, rest)) = text.split_once("://") {
        let host = host_of(rest);
        return Err(Refusal::new(format!("{} is a URL", quote(text)), format!("write {}", quote(host))));
    }
    let bare = text.trim_start_matches('[').trim_end_matches([']', '.']);
    if bare.parse::<IpAddr>().is_ok() || bare.parse::<IpNetwork>().is_ok() {
        return Err(Refusal::new(
            format!("{} is an address, not a host name", quote(text)),
            format!("write it under networks: `networks = [\"{bare}\"]`"),
        ));
    }
    if is_address_glob(text) {
        return Err(Refusal::new(
            format!("{} is meant for addresses, but `hosts` are matched against names", quote(text)),
            "write a network, as in `networks = [\"192.0.2.0/24\"]`",
        ));
    }
    if text.contains('/') {
        let instead = format!("write {}: a rule sees hosts, not paths", quote(host_of(text)));
        return Err(Refusal::new(format!("{} has a path", quote(text)), instead));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.bytes().all(|b| b.is_ascii_digit() || b == b'*') => {
            let instead = format!("write {}: a rule covers every port", quote(host));
            Err(Refusal::new(format!("{} has a port", quote(text)), instead))
        }
        _ => Ok(()),
    }
}

/// The host of a URL without its scheme.
fn host_of(rest: &str) -> &str {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => host,
    }
}

/// `192.168.*` and the like.
fn is_address_glob(text: &str) -> bool {
    text.ends_with(".*")
        && text.split('.').all(|part| part == "*" || is_number(part))
        && text.split('.').next().is_some_and(is_number)
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
}

/// Writes labels that are not ASCII as they are asked for on the wire (RFC 5891, with the mapping of UTS 46).
fn in_ascii(text: &str) -> Result<String, Refusal> {
    if text.is_ascii() {
        return Ok(text.to_owned());
    }
    // Inside brackets and braces a dot does not end a label, so there labels cannot be told apart.
    let unclear = text.contains(['[', ']', '{', '}', ',']);
    let labels = text.split('.').map(|label| {
        if label.is_ascii() {
            return Ok(label.to_owned());
        }
        if unclear || has_meta(label) {
            return Err(Refusal::new(
                format!("{} has a wildcard beside letters that are not ASCII", quote(text)),
                "such a label is one `xn--` word in DNS: write it whole, or in its `xn--` form",
            ));
        }
        idna::domain_to_ascii(label).map_err(|_| {
            Refusal::new(
                format!("{} is not a label of an internationalised name", quote(label)),
                "write the name as DNS has it, in its `xn--` form",
            )
        })
    });
    Ok(labels.collect::<Result<Vec<_>, _>>()?.join("."))
}

fn refuse_characters(text: &str) -> Result<(), Refusal> {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.*?[]{},!^".contains(c);
    match text.chars().find(|&c| !known(c)) {
        None => Ok(()),
        Some(other) => Err(Refusal::new(
            format!("{} cannot stand in a host pattern", quote(&other.to_string())),
            "host names have letters, digits, `-`, `_` and `.`; globs add `*`, `?`, `[a-z]` and `{a,b}`",
        )),
    }
}

fn bad_name(text: &str, error: NameError) -> Refusal {
    let hint = match error {
        NameError::Empty | NameError::EmptyLabel => "write one dot between two labels",
        NameError::Escape => "write the name without backslashes",
        NameError::TooLong | NameError::LongLabel => "no DNS name is so long: write a shorter one",
    };
    Refusal::new(format!("{} is not a host name: {error}", quote(text)), hint)
}

fn glob(text: &str, canonical: &str) -> Result<Glob, Refusal> {
    refuse_shape(text, canonical)?;
    // `**` means `*` here (it is about path separators), and one spelling makes duplicates visible.
    let mut collapsed = String::with_capacity(canonical.len());
    for c in canonical.chars() {
        if c != '*' || !collapsed.ends_with('*') {
            collapsed.push(c);
        }
    }
    GlobBuilder::new(&collapsed)
        .literal_separator(false)
        .backslash_escape(false)
        .empty_alternates(true)
        .build()
        .map_err(|error| {
            Refusal::new(
                format!("{} is not a glob: {}", quote(text), glob_error(error.kind())),
                "globs use `*`, `?`, `[a-z]`, `[!a-z]` and `{a,b}`",
            )
        })
}

/// In the words of this format: globset's own advise escapes that host patterns do not have.
fn glob_error(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::UnclosedAlternates => "a `{` is not closed".to_owned(),
        ErrorKind::UnopenedAlternates => "a `}` has no `{` before it".to_owned(),
        ErrorKind::UnclosedClass => "a `[` is not closed".to_owned(),
        ErrorKind::InvalidRange(from, to) => format!("the range `{from}-{to}` runs backwards"),
        other => other.to_string(),
    }
}

/// What globset takes but means something else than its author, or costs more than it is worth.
fn refuse_shape(text: &str, canonical: &str) -> Result<(), Refusal> {
    let refuse = |why: &str, hint: &str| Err(Refusal::new(format!("{} {why}", quote(text)), hint));
    let (mut class, mut depth) = (None, 0_usize);
    for (at, c) in canonical.char_indices() {
        match (class, c) {
            (Some(start), ']') if at > start => class = None,
            (Some(start), '!' | '^') if at == start => class = Some(at + 1),
            (Some(_), '*' | '?' | '[' | ']' | '{' | '}' | ',' | '!' | '^') => {
                return refuse(
                    &format!("has `{c}` inside of `[...]`"),
                    "a class has letters, digits, `-`, `_` and ranges of them, as in `[a-z0-9]`",
                );
            }
            (Some(_), _) => {}
            (None, '[') => class = Some(at + 1),
            (None, '{') if depth == GLOB_NESTING => {
                return refuse(
                    &format!("nests `{{` deeper than {GLOB_NESTING} levels"),
                    "write several patterns instead",
                );
            }
            (None, '{') => depth += 1,
            (None, '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                return refuse("has a comma outside of `{...}`", "write one pattern a string: \"a\", \"b\"");
            }
            (None, '!' | '^') => {
                return refuse(
                    &format!("has `{c}` outside of `[...]`"),
                    "write exceptions as a rule that allows",
                );
            }
            (None, _) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_canonical() {
        let rows = [
            ("example.com", "example.com"),
            ("WWW.Example.COM.", "www.example.com"),
            ("*.Example.com.", "*.example.com"),
            (".example.com", ".example.com"),
            ("*example.com", "*example.com"),
            ("ads-***.example.[A-Z]?", "ads-*.example.[a-z]?"),
            ("{,*.}x.example", "{,*.}x.example"),
            ("_sip._tcp.example.com", "_sip._tcp.example.com"),
            ("Bücher.example", "xn--bcher-kva.example"),
            ("*.bücher.example", "*.xn--bcher-kva.example"),
            (".中国", ".xn--fiqs8s"),
            ("ads*.bücher.example", "ads*.xn--bcher-kva.example"),
            ("EXAMPLE。com", "example.com"),
            ("localhost", "localhost"),
            ("*.", "*"),
            ("1.example", "1.example"),
            ("[!a-c]*.example", "[!a-c]*.example"),
        ];
        for (text, want) in rows {
            assert_eq!(Pattern::new(text).map(|p| p.to_string()), Ok(want.to_owned()), "{text}");
        }
    }

    #[test]
    fn shapes() {
        assert!(matches!(Pattern::new("example.com"), Ok(Pattern::Exact(_))));
        assert!(matches!(Pattern::new("*.example.com"), Ok(Pattern::Suffix { apex: false, .. })));
        assert!(matches!(Pattern::new("**.example.com"), Ok(Pattern::Glob(_))));
        assert!(matches!(Pattern::new(".example.com"), Ok(Pattern::Suffix { apex: true, .. })));
        assert!(matches!(Pattern::new("example.{com,net}"), Ok(Pattern::Glob(_))));
    }

    #[test]
    fn nothing_hostile_panics_or_passes() {
        let rows = [
            "{".repeat(500),
            "{a,".repeat(160) + &"}".repeat(32),
            "[".repeat(500),
            "[]]".into(),
            "[!".into(),
            "[z-a]".into(),
            "}".into(),
            "{a".into(),
            "a\\".into(),
            "\0".into(),
            "a\u{202e}b.example".into(),
            format!("{}.example", "a".repeat(64)),
            ["abcdefghi"; 26].join("."),
            "xn--\u{e9}.example*\u{e9}".into(),
        ];
        for text in rows {
            assert!(Pattern::new(&text).is_err(), "{text}");
        }
    }
}
