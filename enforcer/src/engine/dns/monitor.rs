//! What systemd-resolved tells those who listen to its answers (io.systemd.Resolve.Monitor, a varlink interface): JSON
//! about each name that somebody asked it for, with the records as on the wire.
//!
//! It comes from a system service, but who answers chose the names and the records in it. They are put together to the DNS
//! message that they might have come in, so that one parser reads both.

use std::borrow::Cow;
use std::collections::BTreeSet;

use domain::utils::base64;
use enforcer_common::limits::CNAME_CHAIN;
use serde::Deserialize;

use crate::engine::name::{Name, NameError};

/// What is sent first.
pub const SUBSCRIBE: &[u8] =
    b"{\"method\":\"io.systemd.Resolve.Monitor.SubscribeQueryResults\",\"parameters\":{},\"more\":true}\0";
/// systemd sends no longer message.
pub const LONGEST: usize = 16 << 20;

/// One message of the feed, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Every answer from now on is told.
    Ready,
    /// As a DNS message.
    Answer(Vec<u8>),
    /// About a name without addresses.
    Nothing,
    /// About names of the link only, which any neighbour answers for.
    Local,
    /// It refuses to tell, and why.
    Refused(String),
}

#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error("no message of the feed: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a question is no name: {0}")]
    Name(#[from] NameError),
    #[error("an answer without a question")]
    Unasked,
    #[error("a record is malformed")]
    Record,
    #[error("more records than a message can have")]
    Many,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
    #[serde(borrow)]
    parameters: Option<Parameters<'a>>,
}

#[derive(Deserialize)]
struct Parameters<'a> {
    ready: Option<bool>,
    #[serde(borrow)]
    state: Option<Cow<'a, str>>,
    #[serde(borrow)]
    question: Option<Vec<Question<'a>>>,
    /// Those before it, of which an alias led here.
    #[serde(borrow, rename = "collectedQuestions")]
    before: Option<Vec<Question<'a>>>,
    #[serde(borrow)]
    answer: Option<Vec<Record<'a>>>,
}

#[derive(Deserialize)]
struct Question<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Record<'a> {
    /// The whole record, uncompressed, in base64.
    #[serde(borrow)]
    raw: Cow<'a, str>,
}

/// Reads one message, without the NUL that ends it.
pub fn read(message: &[u8]) -> Result<Heard, MonitorError> {
    let message: Message<'_> = serde_json::from_slice(message)?;
    if let Some(error) = message.error {
        return Ok(Heard::Refused(error.into_owned()));
    }
    let Some(told) = message.parameters else { return Ok(Heard::Nothing) };
    if told.ready == Some(true) {
        return Ok(Heard::Ready);
    }
    // What failed nobody was told either.
    let records = told.answer.filter(|_| told.state.as_deref() == Some("success")).unwrap_or_default();
    let mut names = Names::default();
    for question in told.before.iter().flatten().chain(told.question.iter().flatten()) {
        names.take(Name::from_text(&question.name))?;
    }
    let (mut kept, mut local) = (Vec::new(), false);
    for record in &records {
        let raw: Vec<u8> = base64::decode(&record.raw).map_err(|_| MonitorError::Record)?;
        let (owner, kind) = split(&raw).ok_or(MonitorError::Record)?;
        if LEADING.contains(&kind) {
            // What was asked for may have been completed by a search domain: the owners are names on the way, too.
            let kept_name = names.take(Name::from_labels(owner))?;
            local |= !kept_name;
            kept.extend(kept_name.then_some(raw));
        }
    }
    if kept.is_empty() {
        return Ok(if local { Heard::Local } else { Heard::Nothing });
    }
    compose(&names.list, &kept).map(Heard::Answer)
}

const A: u16 = 1;
const CNAME: u16 = 5;
/// Types that lead from a name to an address, or to another name: A, CNAME, AAAA, SVCB, HTTPS.
const LEADING: [u16; 5] = [A, CNAME, 28, 64, 65];
const INTERNET: u16 = 1;
/// Of what we add, so that the shortest of a way is never one of these.
const LONG: u32 = i32::MAX as u32;

/// In their order, each once, without those of the link (mDNS, LLMNR): the feed does not say who answered, and for these any
/// neighbour can, or any user of this host. So they are no reason to deny an address, nor what they are an alias of.
#[derive(Default)]
struct Names {
    list: Vec<Name>,
    known: BTreeSet<Name>,
}

impl Names {
    /// False: it is one of the link, or the root.
    fn take(&mut self, name: Result<Name, NameError>) -> Result<bool, NameError> {
        match name {
            Ok(name) if is_local(&name) => Ok(false),
            Ok(name) => {
                self.list.extend(self.known.insert(name.clone()).then_some(name));
                Ok(true)
            }
            Err(NameError::Empty) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_local(name: &Name) -> bool {
    let name = name.as_str();
    !name.contains('.') || name.ends_with(".local")
}

/// The labels of a record's owner, and its type.
fn split(record: &[u8]) -> Option<(Vec<&[u8]>, u16)> {
    let mut labels = Vec::new();
    let mut rest = record;
    loop {
        let (&length, after) = rest.split_first()?;
        if length == 0 {
            // Type, class, time to live, length of the data, which are all that follows.
            let (head, data) = after.split_first_chunk::<10>()?;
            let whole = usize::from(u16::from_be_bytes([head[8], head[9]])) == data.len();
            return whole.then_some((labels, u16::from_be_bytes([head[0], head[1]])));
        }
        // No pointers: nothing precedes it.
        let (label, after) = after.split_at_checked(usize::from(length))?;
        labels.push(label);
        rest = after;
    }
}

/// A message about the first name, in which it is an alias of the others.
fn compose(names: &[Name], records: &[Vec<u8>]) -> Result<Vec<u8>, MonitorError> {
    let (asked, others) = names.split_first().ok_or(MonitorError::Unasked)?;
    // Further ones nobody follows.
    let others = &others[..others.len().min(CNAME_CHAIN)];
    let count = u16::try_from(others.len() + records.len()).map_err(|_| MonitorError::Many)?;
    let asked = asked.to_wire();
    // A response, recursion desired and available; one question.
    let mut message = vec![0, 0, 0x81, 0x80, 0, 1];
    message.extend(count.to_be_bytes());
    message.extend([0; 4]);
    message.extend(&asked);
    message.extend([A.to_be_bytes(), INTERNET.to_be_bytes()].concat());
    for other in others {
        let target = other.to_wire();
        message.extend(&asked);
        message.extend([CNAME.to_be_bytes(), INTERNET.to_be_bytes()].concat());
        message.extend(LONG.to_be_bytes());
        message.extend(u16::try_from(target.len()).unwrap_or(u16::MAX).to_be_bytes());
        message.extend(&target);
    }
    records.iter().for_each(|record| message.extend(record));
    Ok(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::dns::wire;

    /// systemd-resolved 252 of Debian 12: asked for by nss-resolve, an alias.
    const ALIAS: &str = r#"{"parameters":{"state":"success","question":[{"class":1,"type":1,"name":"www.good.example"},{"class":1,"type":28,"name":"www.good.example"}],"answer":[{"rr":{"key":{"class":1,"type":5,"name":"www.good.example"},"name":"bad.example"},"raw":"A3d3dwRnb29kB2V4YW1wbGUAAAUAAQAAASwADQNiYWQHZXhhbXBsZQA=","ifindex":2},{"rr":{"key":{"class":1,"type":28,"name":"bad.example"},"address":[32,1,13,184,0,0,0,0,0,0,0,0,0,0,0,102]},"raw":"A2JhZAdleGFtcGxlAAAcAAEAAAEsABAgAQ24AAAAAAAAAAAAAABm","ifindex":2},{"rr":{"key":{"class":1,"type":1,"name":"bad.example"},"address":[203,0,113,66]},"raw":"A2JhZAdleGFtcGxlAAABAAEAAAEsAATLAHFC","ifindex":2}]},"continues":true}"#;
    /// The same: `bad`, completed by a search domain.
    const SEARCHED: &str = r#"{"parameters":{"state":"success","question":[{"class":1,"type":1,"name":"bad"},{"class":1,"type":28,"name":"bad"}],"answer":[{"rr":{"key":{"class":1,"type":1,"name":"bad.example"},"address":[203,0,113,66]},"raw":"A2JhZAdleGFtcGxlAAABAAEAAAEsAATLAHFC","ifindex":2}]},"continues":true}"#;
    const READY: &str = r#"{"parameters":{"ready":true},"continues":true}"#;
    const UNKNOWN: &str = r#"{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"io.systemd.Resolve.Monitor.Nope"}}"#;
    /// Without an address that anybody was told.
    const NOTHING: [&str; 5] = [
        r#"{"parameters":{"state":"rcode-failure","rcode":3,"question":[{"class":1,"type":1,"name":"a\\.b\\000c.example"}]},"continues":true}"#,
        r#"{"parameters":{"state":"success","question":[{"class":1,"type":2,"name":"."}]},"continues":true}"#,
        r#"{"parameters":{"state":"success","question":[{"class":1,"type":12,"name":"66.113.0.203.in-addr.arpa"}],"answer":[{"rr":{"key":{"class":1,"type":12,"name":"66.113.0.203.in-addr.arpa"},"name":"bad.example"},"raw":"AjY2AzExMwEwAzIwMwdpbi1hZGRyBGFycGEAAAwAAQAAASwADQNiYWQHZXhhbXBsZQA=","ifindex":2}]},"continues":true}"#,
        r#"{"parameters":{"state":"dnssec-failed","question":[{"class":1,"type":1,"name":"bad"}],"answer":[{"raw":"A2JhZAdleGFtcGxlAAABAAEAAAEsAATLAHFC"}]},"continues":true}"#,
        r#"{"continues":true}"#,
    ];

    /// The names on the way, and the addresses with their TTL.
    fn told(message: &str) -> (Vec<String>, Vec<(String, u32)>) {
        let Ok(Heard::Answer(bytes)) = read(message.as_bytes()) else {
            panic!("{:?}", read(message.as_bytes()))
        };
        let answer = wire::parse(&bytes).unwrap();
        let names = answer.chain.iter().map(ToString::to_string).collect();
        let addresses = answer.addresses.iter();
        let addresses =
            addresses.map(|(addr, ttl)| (std::net::IpAddr::from(*addr).to_string(), *ttl)).collect();
        (names, addresses)
    }

    fn message(before: &[&str], asked: &[&str], records: &[Vec<u8>]) -> String {
        let names = |names: &[&str]| -> Vec<_> {
            names.iter().map(|name| serde_json::json!({"class": 1, "type": 1, "name": name})).collect()
        };
        let records: Vec<_> =
            records.iter().map(|raw| serde_json::json!({"raw": base64::encode_string(raw)})).collect();
        serde_json::json!({"parameters": {
            "state": "success", "question": names(asked), "collectedQuestions": names(before), "answer": records,
        }})
        .to_string()
    }

    fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(data.len()).unwrap();
        [owner, &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &length.to_be_bytes(), data].concat()
    }

    #[test]
    fn what_resolved_really_said() {
        let (bad, alias) =
            ("203.0.113.66".to_owned(), ["www.good.example", "bad.example"].map(str::to_owned));
        assert_eq!(told(ALIAS), (alias.to_vec(), vec![("2001:db8::66".to_owned(), 300), (bad.clone(), 300)]));
        assert_eq!(told(SEARCHED), (vec!["bad.example".to_owned()], vec![(bad, 300)]));
        assert_eq!(read(READY.as_bytes()).unwrap(), Heard::Ready);
        let refused = Heard::Refused("org.varlink.service.MethodNotFound".to_owned());
        assert_eq!(read(UNKNOWN.as_bytes()).unwrap(), refused);
        for message in NOTHING {
            assert_eq!(read(message.as_bytes()).unwrap(), Heard::Nothing, "{message}");
        }
    }

    #[test]
    fn the_names_that_led_to_a_question_are_on_the_way() {
        let a = record(b"\x01c\x07example\0", A, &[192, 0, 2, 1]);
        let (names, addresses) = told(&message(
            &["A.example", "b.example"],
            &["c.example", "c.example"],
            std::slice::from_ref(&a),
        ));
        assert_eq!(names, ["a.example", "b.example", "c.example"]);
        assert_eq!(addresses, [("192.0.2.1".to_owned(), 60)]);
        // Bytes that are no letters arrive as what they are.
        let odd = record(b"\x03a.\0\x07example\0", A, &[192, 0, 2, 1]);
        assert_eq!(told(&message(&[], &[r"a\.\000.example"], &[odd])).0, [r"a\046\000.example"]);
        let (names, _) = told(&message(&["bücher.example"], &["xn--bcher-kva.example"], &[a]));
        assert_eq!(names, [r"b\195\188cher.example", "xn--bcher-kva.example", "c.example"]);
    }

    /// Whoever answers for `ads-1.local` must not choose whose addresses are denied by a rule about `ads-*`.
    #[test]
    fn what_a_neighbour_may_have_answered_is_no_reason_to_deny() {
        let address = [192, 0, 2, 1];
        let owners: [&[u8]; 4] = [b"\x05ads-1\x05LOCAL\0", b"\x05ads-1\0", b"\x05local\0", b"\0"];
        for owner in owners {
            let local = message(&[], &["ads-1.local"], &[record(owner, A, &address)]);
            assert_eq!(read(local.as_bytes()).unwrap(), Heard::Local, "{owner:?}");
        }
        let bank = record(b"\x04bank\x07example\0", A, &address);
        let mixed = record(b"\x05ads-1\x05local\0", A, &[192, 0, 2, 9]);
        let (names, addresses) = told(&message(&["ads-1.local", "ads-2"], &["bank.example"], &[mixed, bank]));
        assert_eq!(names, ["bank.example"]);
        assert_eq!(addresses, [("192.0.2.1".to_owned(), 60)]);
    }

    #[test]
    fn what_is_malformed_is_told_as_that() {
        let a = record(b"\x01c\x07example\0", A, &[192, 0, 2, 1]);
        let long = [&[64][..], &[b'a'; 64], &[0]].concat();
        let longest = [&[&[63][..], &[b'a'; 63]].concat().repeat(4)[..], &[0]].concat();
        let cut = a[..a.len() - 1].to_vec();
        let more = [&a[..], &[0]].concat();
        let mut rows = vec![
            String::new(),
            "{".to_owned(),
            "[]".to_owned(),
            r#"{"parameters":{"answer":7}}"#.to_owned(),
            r#"{"parameters":{"state":"success","question":[{}]}}"#.to_owned(),
            r#"{"parameters":{"state":"success","question":[{"name":"c"}],"answer":[{"raw":"?"}]}}"#
                .to_owned(),
            r#"{"parameters":{"state":"success","question":[{"name":"c"}],"answer":[{}]}}"#.to_owned(),
            "[".repeat(100_000),
            message(&[], &["a..b"], std::slice::from_ref(&a)),
            message(&[], &[&"a".repeat(64)], std::slice::from_ref(&a)),
            message(&[], &["c"], &vec![a.clone(); 65_536]),
        ];
        for raw in
            [Vec::new(), cut, more, record(&long, A, &[1; 4]), record(&longest, A, &[1; 4]), vec![0xc0, 12]]
        {
            rows.push(message(&[], &["c"], &[raw]));
        }
        for row in rows {
            assert!(read(row.as_bytes()).is_err(), "{}", row.get(..200).unwrap_or(&row));
        }
        // The parser of messages sees to the rest.
        let Heard::Answer(wrong) =
            read(message(&[], &["c"], &[record(b"\x01c\x07example\0", A, &[1; 5])]).as_bytes()).unwrap()
        else {
            panic!("no answer")
        };
        assert!(wire::parse(&wrong).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_a_message_or_an_error(
            names in prop::collection::vec("\\PC{0,80}", 0..4),
            raw in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let mut bytes = message(&names, &["asked.example"], &raw).into_bytes();
            for _ in 0..2 {
                if let Ok(Heard::Answer(message)) = read(&bytes) {
                    let _ = wire::parse(&message);
                }
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
    }
}
