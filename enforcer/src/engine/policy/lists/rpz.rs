//! Response policy zones: DNS zone files whose names are what is asked and whose CNAMEs say what happens then.
//!
//! Names are taken that get no answer (`.`, `*.`, `rpz-drop.`), and excepted that pass (`rpz-passthru.`). Answers with
//! data, and triggers that are no asked names, are beyond a host firewall.

use std::borrow::Cow;

use super::super::diagnostic::quote;
use super::super::pattern::Refusal;
use super::domains::{canonical, line as pattern, with_name};
use super::{Reader, Reason, Said};

/// Words of a record over several lines that are kept. The records that matter have five.
const WORDS: usize = 32;

/// Labels of triggers that are no asked names.
const TRIGGERS: [&str; 4] = ["rpz-ip", "rpz-client-ip", "rpz-nsip", "rpz-nsdname"];

/// What is known of the zone so far.
#[derive(Debug, Default)]
pub(super) struct Zone {
    /// Its name, lower-case without the last dot. Relative names are those of triggers already.
    apex: Option<String>,
    /// What `$ORIGIN` puts behind relative names, within the zone.
    under: String,
    owner: String,
    /// A record that goes on in the next line, by parentheses.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    words: Vec<Vec<u8>>,
    /// Whether it began with a blank: it has the owner of the record before it.
    same_owner: bool,
}

impl Zone {
    pub(super) fn line(&mut self, line: &[u8], reader: &mut Reader<'_>) {
        let line = without_comment(line.trim_ascii_end());
        let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        if self.open.is_none() && !line.iter().any(|byte| matches!(byte, b'(' | b')')) {
            let words: Words<'_> = words.collect();
            return self.record(line.first().is_some_and(u8::is_ascii_whitespace), &words, reader);
        }
        let mut open = self.open.take().unwrap_or_else(|| Open {
            words: Vec::new(),
            same_owner: line.first().is_some_and(u8::is_ascii_whitespace),
        });
        let mut words: Vec<Vec<u8>> = words.map(<[u8]>::to_vec).collect();
        let closes = line.contains(&b')');
        for word in &mut words {
            word.retain(|byte| !matches!(byte, b'(' | b')'));
        }
        words.retain(|word| !word.is_empty());
        words.truncate(WORDS.saturating_sub(open.words.len()));
        open.words.append(&mut words);
        if closes {
            let words: Words<'_> = open.words.iter().map(Vec::as_slice).collect();
            self.record(open.same_owner, &words, reader);
        } else {
            self.open = Some(open);
        }
    }

    fn record(&mut self, same_owner: bool, words: &[&[u8]], reader: &mut Reader<'_>) {
        let (Some(first), false) = (words.first(), words.is_empty()) else { return };
        if first.starts_with(b"$") {
            return self.directive(words, reader);
        }
        let rest = if same_owner {
            words
        } else {
            self.owner.clear();
            self.owner.push_str(&String::from_utf8_lossy(first));
            &words[1..]
        };
        let mut rest = rest.iter().skip_while(|word| is_ttl(word) || is_class(word));
        let (Some(kind), target) = (rest.next(), rest.next().copied().unwrap_or_default()) else {
            return reader.mistake(Refusal::new(
                format!("{} has no record", quote(&self.owner)),
                "write `bad.example CNAME .`",
            ));
        };
        if kind.eq_ignore_ascii_case(b"SOA") && self.owner.ends_with('.') && self.apex.is_none() {
            self.apex = Some(lower(&self.owner));
        }
        if is_of_zone(kind) {
            return;
        }
        self.trigger(kind.eq_ignore_ascii_case(b"CNAME").then_some(target), reader);
    }

    fn directive(&mut self, words: &[&[u8]], reader: &mut Reader<'_>) {
        let word = words[0].to_ascii_uppercase();
        match (word.as_slice(), words.get(1)) {
            (b"$TTL", Some(_)) => {}
            (b"$ORIGIN", Some(origin)) => self.origin(&lower(&String::from_utf8_lossy(origin))),
            _ => reader.mistake(Refusal::new(
                format!("{} is not followed", quote(&String::from_utf8_lossy(words[0]))),
                "name every file as a list of its own",
            )),
        }
    }

    /// The first is the zone's, unless that is known; others lie below it.
    fn origin(&mut self, origin: &str) {
        let apex = self.apex.get_or_insert_with(|| origin.to_owned());
        let under = origin.strip_suffix(apex.as_str()).unwrap_or(origin);
        self.under = under.strip_suffix('.').unwrap_or(under).to_owned();
    }

    /// The owner and where its CNAME leads; `None`: it has other records.
    fn trigger(&self, target: Option<&[u8]>, reader: &mut Reader<'_>) {
        let plain = self.under.is_empty() && canonical(self.owner.as_bytes()).is_some();
        let inside =
            if plain { Some(Cow::Borrowed(self.owner.as_str())) } else { self.inside().map(Cow::Owned) };
        let Some(owner) = inside else { return reader.skip(Reason::OutOfZone) };
        if owner.is_empty() {
            return; // the zone's own records
        }
        if TRIGGERS.contains(&owner.rsplit('.').next().unwrap_or_default()) {
            return reader.skip(Reason::OtherTrigger);
        }
        let target = target.map(<[u8]>::to_ascii_lowercase);
        let except = match target.as_deref() {
            Some(b"." | b"*." | b"rpz-drop.") => false,
            Some(b"rpz-passthru.") => true,
            _ => return reader.skip(Reason::OtherAction),
        };
        if owner == "*" && !except {
            return pattern(b"*", reader);
        }
        let (domain, below) = match owner.strip_prefix("*.") {
            Some(domain) => (domain, true),
            None => (owner.as_ref(), false),
        };
        let name = |domain: &str| reader.said(Said::Name { domain, itself: !below, below, except });
        if let Err(refusal) = with_name(domain.as_bytes(), name) {
            reader.mistake(refusal);
        }
    }

    /// The owner as a name within the zone; empty: the zone itself.
    fn inside(&self) -> Option<String> {
        if self.owner == "@" {
            return Some(self.under.clone());
        }
        let name = lower(&self.owner);
        if self.owner.ends_with('.') {
            let rest = name.strip_suffix(self.apex.as_deref()?)?;
            return if rest.is_empty() {
                Some(String::new())
            } else {
                rest.strip_suffix('.').map(str::to_owned)
            };
        }
        Some(if self.under.is_empty() { name } else { format!("{name}.{}", self.under) })
    }
}

type Words<'a> = Vec<&'a [u8]>;

/// Lower-case, without the last dot.
fn lower(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// `;` begins a comment, unless it is quoted.
fn without_comment(line: &[u8]) -> &[u8] {
    let mut quoted = false;
    let end = line.iter().position(|byte| {
        quoted ^= *byte == b'"';
        *byte == b';' && !quoted
    });
    &line[..end.unwrap_or(line.len())]
}

/// `300`, `1h30m`.
fn is_ttl(word: &[u8]) -> bool {
    word.first().is_some_and(u8::is_ascii_digit)
        && word.iter().all(|byte| byte.is_ascii_digit() || b"smhdwSMHDW".contains(byte))
}

fn is_class(word: &[u8]) -> bool {
    [b"IN", b"CH", b"HS"].iter().any(|class| word.eq_ignore_ascii_case(*class))
}

/// Records that make the zone, and trigger nothing.
fn is_of_zone(kind: &[u8]) -> bool {
    ["SOA", "NS", "DNSKEY", "RRSIG", "NSEC", "NSEC3", "NSEC3PARAM", "ZONEMD"]
        .iter()
        .any(|known| kind.eq_ignore_ascii_case(known.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::{ListFormat, tests};
    use super::*;

    #[test]
    fn rows() {
        let text = "$TTL 300\n\
            @ IN SOA ns.rpz.example. admin.rpz.example. (\n  1 ; serial\n  3600\n  900 604800 60 )\n\
            @ IN NS localhost.\n\
            ; words\n\n\
            bad.example CNAME .\n\
            *.bad.example\tIN\tCNAME\t. ; why\n\
            Nodata.example 300 IN cname *.\n\
            drop.example CNAME rpz-drop.\n\
            good.bad.example CNAME rpz-passthru.\n\
            *.fine.example CNAME rpz-passthru.\n\
            garden.example CNAME walled.example.\n\
            local.example A 127.0.0.1\n    AAAA ::1\n\
            txt.example TXT \"a; b\"\n\
            32.1.2.0.192.rpz-ip CNAME .\n\
            ns.evil.example.rpz-nsdname CNAME .\n\
            outside.example. CNAME .\n\
            $INCLUDE other.zone\n\
            alone\n\
            multi.example ( CNAME\n . )\n";
        let (said, tally) = tests::deny(ListFormat::Rpz, text);
        let want = [
            "bad.example",
            "*.bad.example",
            "nodata.example",
            "drop.example",
            "!good.bad.example",
            "!*.fine.example",
            "multi.example",
        ];
        assert_eq!(said, want);
        let count = |reason| tally.skipped.get(&reason).copied().unwrap_or(0);
        assert_eq!((count(Reason::OtherAction), count(Reason::OtherTrigger)), (4, 2));
        assert_eq!((count(Reason::OutOfZone), count(Reason::Mistake)), (1, 2));
    }

    #[test]
    fn names_may_be_absolute_and_origins_lie_in_the_zone() {
        let absolute = "rpz.local. 60 IN SOA ns. root. 1 2 3 4 5\nbad.example.RPZ.local. CNAME .\n\
                        *.bad.example.rpz.local. CNAME .\nrpz.local. NS ns.\n";
        assert_eq!(tests::deny(ListFormat::Rpz, absolute).0, ["bad.example", "*.bad.example"]);
        let origins = "$ORIGIN rpz.local.\n@ SOA ns root 1 2 3 4 5\na.example CNAME .\n\
                       $ORIGIN example.rpz.local.\nb CNAME .\n* CNAME .\n$ORIGIN rpz.local.\nc.example CNAME .\n";
        let (said, tally) = tests::deny(ListFormat::Rpz, origins);
        assert_eq!(said, ["a.example", "b.example", "*.example", "c.example"], "{tally:?}");
    }

    #[test]
    fn everything_is_a_glob_and_an_endless_parenthesis_ends_with_the_file() {
        assert_eq!(tests::deny(ListFormat::Rpz, "* CNAME .\n").0, ["*"]);
        let (said, _) =
            tests::deny(ListFormat::Rpz, &format!("a.example CNAME . (\n{}", "x y z\n".repeat(1000)));
        assert!(said.is_empty());
    }
}
