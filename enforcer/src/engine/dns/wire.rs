//! One DNS message: what was asked, and which addresses the answer leads to.
//!
//! The bytes are hostile: whoever can answer can write anything. `domain` bounds names, pointers (backwards
//! only) and records; everything kept here is bounded by the length of the message.

use domain::base::iana::{Class, Opcode, Rtype};
use domain::base::name::ParsedName;
use domain::base::{Message, ParsedRecord, RecordSection};
use domain::rdata::svcb::value::{Ipv4Hint, Ipv6Hint};
use domain::rdata::svcb::{HttpsVariant, SvcbRdata, SvcbVariant};
use domain::rdata::{A, Aaaa, Cname};
use enforcer_common::Addr;
use enforcer_common::limits::CNAME_CHAIN;

use crate::engine::name::{Name, NameError};

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub id: u16,
    pub question: Name,
    pub qtype: u16,
    /// The server cut the message (TC), and most clients ask again over TCP. What stands in it counts all the
    /// same: clients without TCP (musl before 1.2.4) use it.
    pub truncated: bool,
    pub rcode: u8,
    /// The asked name first, then every name it leads to, in order; no name twice.
    pub chain: Vec<Name>,
    /// The chain was longer than `CNAME_CHAIN` followed names.
    pub chain_cut: bool,
    /// With the time to live in seconds: the shortest of the record's own and those on the way to it.
    ///
    /// Every address of the answer section counts, also one whose owner is not in the chain (or beyond the
    /// cut): musl, Go and c-ares hand such an address to the application, so ignoring it would be a way
    /// around a denied name. Believing it gives nobody power: who writes the records writes the owners.
    pub addresses: Vec<(Addr, u32)>,
}

/// Why a message says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WireError {
    #[error("the message is shorter than a header")]
    Short,
    #[error("the message is a query")]
    Query,
    #[error("the message is not about a standard query")]
    Opcode,
    #[error("the message does not have exactly one question")]
    Questions,
    #[error("the question is malformed")]
    Question,
    #[error("the question is not about the Internet class")]
    Class,
    #[error("the question is about the root")]
    Root,
    #[error("a record of the answer is malformed")]
    Record,
}

/// Reads one message, without the length that precedes it over TCP.
pub fn parse(message: &[u8]) -> Result<Answer, WireError> {
    let message = Message::from_slice(message).map_err(|_| WireError::Short)?;
    let header = message.header();
    if !header.qr() {
        return Err(WireError::Query);
    }
    if header.opcode() != Opcode::QUERY {
        return Err(WireError::Opcode);
    }
    if message.header_counts().qdcount() != 1 {
        return Err(WireError::Questions);
    }
    let question = message.sole_question().map_err(|_| WireError::Question)?;
    if question.qclass() != Class::IN {
        return Err(WireError::Class);
    }
    let name = canonical(question.qname()).map_err(|_| WireError::Root)?;
    let mut answer = Answer {
        id: header.id(),
        question: name.clone(),
        qtype: question.qtype().to_int(),
        truncated: header.tc(),
        rcode: header.rcode().to_int(),
        chain: vec![name],
        chain_cut: false,
        addresses: Vec::new(),
    };
    let section = message.answer().map_err(|_| WireError::Record)?;
    Records::read(section, answer.truncated)?.lead_from(*question.qname(), &mut answer);
    Ok(answer)
}

type RawName<'a> = ParsedName<&'a [u8]>;

/// The records of an answer that matter, in their order.
#[derive(Default)]
struct Records<'a> {
    /// Owner leads to target. Several for one owner are against the rules (RFC 2181, 10.1), so all are believed.
    aliases: Vec<(RawName<'a>, RawName<'a>, u32)>,
    addresses: Vec<(RawName<'a>, Addr, u32)>,
}

impl<'a> Records<'a> {
    /// `truncated`: the last record may be cut off, too.
    fn read(section: RecordSection<'a, [u8]>, truncated: bool) -> Result<Self, WireError> {
        let mut records = Self::default();
        for record in section {
            match record.and_then(|record| records.take_internet(&record)) {
                Ok(()) => {}
                Err(_) if truncated => break,
                Err(_) => return Err(WireError::Record),
            }
        }
        Ok(records)
    }

    fn take_internet(
        &mut self,
        record: &ParsedRecord<'a, [u8]>,
    ) -> Result<(), domain::base::wire::ParseError> {
        if record.class() == Class::IN { self.take(record) } else { Ok(()) }
    }

    fn take(&mut self, record: &ParsedRecord<'a, [u8]>) -> Result<(), domain::base::wire::ParseError> {
        let (owner, ttl) = (record.owner(), ttl(record.ttl().as_secs()));
        match record.rtype() {
            Rtype::A => {
                if let Some(a) = record.to_record::<A>()? {
                    self.addresses.push((owner, Addr::from_v4(a.data().addr().octets()), ttl));
                }
            }
            Rtype::AAAA => {
                if let Some(aaaa) = record.to_record::<Aaaa>()? {
                    self.addresses.push((owner, Addr::from_v6(aaaa.data().addr().octets()), ttl));
                }
            }
            Rtype::CNAME => {
                if let Some(cname) = record.to_record::<Cname<RawName<'a>>>()? {
                    self.aliases.push((owner, *cname.data().cname(), ttl));
                }
            }
            // Resolvers pass these on unread, so a malformed one must not hide the records beside it.
            Rtype::HTTPS => {
                if let Ok(Some(https)) = record.to_record::<SvcbRdata<HttpsVariant, _, _>>() {
                    self.take_service(owner, ttl, https.data());
                }
            }
            Rtype::SVCB => {
                if let Ok(Some(svcb)) = record.to_record::<SvcbRdata<SvcbVariant, _, _>>() {
                    self.take_service(owner, ttl, svcb.data());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A service's target is a name on the way like a CNAME's; its hints are addresses (RFC 9460, 7.3).
    fn take_service<V>(
        &mut self,
        owner: RawName<'a>,
        ttl: u32,
        service: &SvcbRdata<V, &'a [u8], RawName<'a>>,
    ) {
        if !service.target().is_root() {
            self.aliases.push((owner, *service.target(), ttl));
        }
        for hint in service.params().iter::<Ipv4Hint<&[u8]>>().flatten() {
            self.addresses.extend(hint.iter().map(|v4| (owner, Addr::from_v4(v4.octets()), ttl)));
        }
        for hint in service.params().iter::<Ipv6Hint<&[u8]>>().flatten() {
            self.addresses.extend(hint.iter().map(|v6| (owner, Addr::from_v6(v6.octets()), ttl)));
        }
    }

    /// Follows the aliases from the asked name, then gives every address the shortest TTL of its way.
    fn lead_from(&self, asked: RawName<'a>, answer: &mut Answer) {
        let mut chain = vec![(asked, u32::MAX)];
        let mut at = 0;
        while let Some(&(name, so_far)) = chain.get(at) {
            for (owner, target, ttl) in &self.aliases {
                if *owner != name || target.is_root() || chain.iter().any(|(known, _)| known == target) {
                    continue;
                }
                if chain.len() > CNAME_CHAIN {
                    answer.chain_cut = true;
                    break;
                }
                chain.push((*target, so_far.min(*ttl)));
            }
            at += 1;
        }
        let whole = chain.iter().map(|(_, ttl)| *ttl).min().unwrap_or(u32::MAX);
        answer.addresses.extend(self.addresses.iter().map(|(owner, addr, ttl)| {
            let way = chain.iter().find(|(name, _)| name == owner).map_or(whole, |(_, ttl)| *ttl);
            (*addr, way.min(*ttl))
        }));
        answer.chain.extend(chain[1..].iter().filter_map(|(target, _)| canonical(target).ok()));
    }
}

fn canonical(raw: &RawName<'_>) -> Result<Name, NameError> {
    Name::from_labels(raw.iter().map(|label| label.as_slice()).filter(|label| !label.is_empty()))
}

/// RFC 2181, 8: a TTL with the most significant bit set is zero.
fn ttl(seconds: u32) -> u32 {
    if seconds > i32::MAX.unsigned_abs() { 0 } else { seconds }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message under construction. Names are written uncompressed unless given as raw bytes.
    struct Build(Vec<u8>);

    const A: u16 = 1;
    const CNAME: u16 = 5;
    const AAAA: u16 = 28;
    const HTTPS: u16 = 65;

    fn labels(name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        bytes
    }

    impl Build {
        fn asked(name: &str, qtype: u16) -> Self {
            let mut bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
            bytes.extend(labels(name));
            bytes.extend([qtype.to_be_bytes(), [0, 1]].concat());
            Self(bytes)
        }

        fn raw(mut self, owner: &[u8], rtype: u16, class: u16, ttl: u32, data: &[u8]) -> Self {
            self.0.extend(owner);
            self.0.extend([rtype.to_be_bytes(), class.to_be_bytes()].concat());
            self.0.extend(ttl.to_be_bytes());
            self.0.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            self.0.extend(data);
            let count = u16::from_be_bytes([self.0[6], self.0[7]]) + 1;
            self.0[6..8].copy_from_slice(&count.to_be_bytes());
            self
        }

        fn a(self, owner: &str, ttl: u32, last: u8) -> Self {
            self.raw(&labels(owner), A, 1, ttl, &[192, 0, 2, last])
        }

        fn cname(self, owner: &str, ttl: u32, target: &str) -> Self {
            self.raw(&labels(owner), CNAME, 1, ttl, &labels(target))
        }

        fn set(mut self, at: usize, byte: u8) -> Self {
            self.0[at] = byte;
            self
        }

        fn parse(&self) -> Result<Answer, WireError> {
            parse(&self.0)
        }
    }

    fn v4(last: u8) -> Addr {
        Addr::from_v4([192, 0, 2, last])
    }

    fn chain(answer: &Answer) -> Vec<&str> {
        answer.chain.iter().map(Name::as_str).collect()
    }

    #[test]
    fn every_reason_to_refuse() {
        let good = || Build::asked("a.example", A);
        let with = |bytes: &[u8]| Build([&good().0[..12], bytes].concat());
        let rows = [
            (Build(vec![0; 11]), WireError::Short),
            (good().set(2, 0x01), WireError::Query),
            (good().set(2, 0xa8), WireError::Opcode),
            (good().set(5, 0), WireError::Questions),
            (good().set(5, 2), WireError::Questions),
            (with(&[1, b'a']), WireError::Question),
            (with(&[0xc0, 12, 0, 1, 0, 1]), WireError::Question),
            (with(&[0xc0, 14, 0xc0, 12, 0, 1, 0, 1]), WireError::Question),
            (with(&[0x40, 0, 0, 1, 0, 1]), WireError::Question),
            (with(&[0, 0, 1, 0, 3]), WireError::Class),
            (with(&[0, 0, 1, 0, 1]), WireError::Root),
            (good().set(7, 1), WireError::Record),
            (good().raw(&[0xc0, 12], A, 1, 0, &[1, 2, 3]), WireError::Record),
            (good().raw(&[0xc0, 12], A, 1, 0, &[1, 2, 3, 4, 5]), WireError::Record),
            (good().raw(&[0xc0, 12], CNAME, 1, 0, &[0xff]), WireError::Record),
            (good().raw(&[0xc0, 27], A, 1, 0, &[1, 2, 3, 4]), WireError::Record),
        ];
        for (message, want) in rows {
            assert_eq!(message.parse(), Err(want), "{:02x?}", message.0);
        }
    }

    #[test]
    fn names_are_lower_cased_and_compared_so() {
        let answer = Build::asked("WwW.eXample", A).a("wWw.Example", 5, 1).parse().unwrap();
        assert_eq!((answer.id, answer.qtype, answer.rcode), (0x1234, A, 0));
        assert_eq!(answer.question.as_str(), "www.example");
        assert_eq!(chain(&answer), ["www.example"]);
        assert_eq!(answer.addresses, [(v4(1), 5)]);
    }

    #[test]
    fn aliases_are_followed_in_any_order_with_the_shortest_ttl_so_far() {
        let answer = Build::asked("a", A)
            .a("c", 300, 1)
            .cname("B", 50, "c")
            .a("b", 300, 2)
            .cname("a", 100, "b")
            .parse()
            .unwrap();
        assert_eq!(chain(&answer), ["a", "b", "c"]);
        assert_eq!(answer.addresses, [(v4(1), 50), (v4(2), 100)]);
        assert!(!answer.chain_cut);
    }

    #[test]
    fn an_address_of_a_foreign_owner_counts_as_the_asked_names() {
        let answer = Build::asked("a", A).cname("a", 10, "b").a("elsewhere", 99, 1).parse().unwrap();
        assert_eq!((chain(&answer), answer.addresses.as_slice()), (vec!["a", "b"], [(v4(1), 10)].as_slice()));
    }

    #[test]
    fn alias_loops_end_and_several_aliases_are_all_believed() {
        let looped =
            Build::asked("a", A).cname("a", 9, "b").cname("b", 9, "a").cname("b", 9, "b").a("b", 9, 1);
        assert_eq!(chain(&looped.parse().unwrap()), ["a", "b"]);
        let forked =
            Build::asked("a", A).cname("a", 9, "b").cname("a", 9, "c").cname("b", 9, "d").a("c", 7, 1);
        assert_eq!(chain(&forked.parse().unwrap()), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_long_chain_is_cut_and_keeps_its_addresses() {
        for (aliases, cut) in [(CNAME_CHAIN, false), (CNAME_CHAIN + 1, true)] {
            let mut message = Build::asked("n0", A);
            for n in (0..aliases).rev() {
                message = message.cname(&format!("n{n}"), 60, &format!("n{}", n + 1));
            }
            let answer = message.a(&format!("n{aliases}"), 60, 1).parse().unwrap();
            assert_eq!((answer.chain.len(), answer.chain_cut), (CNAME_CHAIN + 1, cut));
            assert_eq!(answer.addresses, [(v4(1), 60)]);
        }
    }

    #[test]
    fn many_addresses() {
        let mut message = Build::asked("a", A);
        for last in 0..200 {
            message = message.raw(&[0xc0, 12], A, 1, 60, &[192, 0, 2, last]);
        }
        let answer = message.parse().unwrap();
        assert_eq!(answer.addresses, (0..200).map(|last| (v4(last), 60)).collect::<Vec<_>>());
    }

    #[test]
    fn ttl_rows() {
        for (wire, want) in [(0, 0), (1, 1), (0x7fff_ffff, 0x7fff_ffff), (0x8000_0000, 0), (u32::MAX, 0)] {
            let answer = Build::asked("a", A).a("a", wire, 1).parse().unwrap();
            assert_eq!(answer.addresses, [(v4(1), want)], "{wire}");
        }
    }

    #[test]
    fn mapped_addresses_are_canonical_and_other_classes_and_types_ignored() {
        let nat64 = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 7];
        let answer = Build::asked("a", AAAA)
            .raw(&labels("a"), AAAA, 1, 60, &nat64)
            .raw(&labels("a"), A, 3, 60, &[192, 0, 2, 8])
            .raw(&labels("a"), 16, 1, 60, b"\x04text")
            .parse()
            .unwrap();
        assert_eq!(answer.addresses, [(v4(7), 60)]);
    }

    #[test]
    fn a_truncated_answer_counts_up_to_where_it_is_cut() {
        let message = Build::asked("a", A).a("a", 60, 1).a("a", 60, 2);
        for (cut, addresses) in [(0, 2), (1, 1), (7, 1), (18, 0)] {
            let whole = &message.0[..message.0.len() - cut];
            let truncated = Build(whole.to_vec()).set(2, 0x83);
            let answer = parse(&truncated.0).unwrap();
            assert!(answer.truncated && answer.addresses.len() == addresses, "{cut}: {answer:?}");
            assert_eq!(parse(whole).is_err(), cut > 0, "{cut}: cut off without saying so");
        }
    }

    #[test]
    fn services_lead_to_their_targets_and_hints() {
        let service = |priority: u16, target: &str, params: &[u8]| {
            [&priority.to_be_bytes(), labels(target).as_slice(), params].concat()
        };
        let v4hint = [0, 4, 0, 8, 192, 0, 2, 1, 192, 0, 2, 2];
        let mut v6hint = vec![0, 6, 0, 16, 0x20, 0x01, 0x0d, 0xb8];
        v6hint.extend([0; 12]);
        let both = [v4hint.as_slice(), &v6hint].concat();
        let v6 = Addr::from_v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

        let answer = Build::asked("a", HTTPS)
            .raw(&labels("b"), HTTPS, 1, 40, &service(1, ".", &both))
            .raw(&labels("a"), HTTPS, 1, 30, &service(0, "b", &[]))
            .parse()
            .unwrap();
        assert_eq!(chain(&answer), ["a", "b"]);
        assert_eq!(answer.addresses, [(v4(1), 30), (v4(2), 30), (v6, 30)]);

        let malformed = [0, 4, 0, 3, 1, 2, 3];
        let answer = Build::asked("a", HTTPS)
            .raw(&labels("a"), HTTPS, 1, 30, &service(1, ".", &malformed))
            .raw(&labels("a"), HTTPS, 1, 30, &service(1, ".", &[0]))
            .a("a", 20, 9)
            .parse()
            .unwrap();
        assert_eq!(answer.addresses, [(v4(9), 20)]);
    }

    #[test]
    fn a_compressed_message_as_servers_send_it() {
        let message = Build::asked("www.example.com", A)
            .raw(&[0xc0, 12], CNAME, 1, 60, &[3, b'c', b'd', b'n', 0xc0, 16])
            .raw(&[0xc0, 45], A, 1, 60, &[192, 0, 2, 1]);
        assert_eq!(chain(&message.parse().unwrap()), ["www.example.com", "cdn.example.com"]);
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_mutated_answer_stays_within_bounds(at in 0usize..100, byte: u8) {
            let message = Build::asked("a.example", A).cname("a.example", 60, "b.example").a("b.example", 60, 1);
            let at = at % message.0.len();
            let message = message.set(at, byte);
            if let Ok(answer) = message.parse() {
                prop_assert!(answer.addresses.len() <= 2 && answer.chain.len() <= 2);
                prop_assert_eq!(&answer.chain[0], &answer.question);
            }
        }
    }
}
