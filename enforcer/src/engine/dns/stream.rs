//! DNS over TCP: packets in, messages out.
//!
//! We see packets, not the stream: retransmitted, overlapping, out of order, starting in the middle when the
//! daemon starts late, with holes when a record of the ring is lost. Anyone may also forge packets that the
//! host's TCP would refuse. So: nothing here is trusted, everything is bounded, and whatever is given up is
//! counted. A stream found in the middle, or again after a hole, is taken up at a segment that looks like
//! the start of a DNS response, which is how servers write.

use std::collections::{BTreeMap, HashMap};

use enforcer_common::verdict::BootNanos;

/// One direction of a connection: the server's port is 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub server: [u8; 16],
    pub client: [u8; 16],
    pub client_port: u16,
}

/// Flows kept. Full: the one that was silent for the longest time makes room.
pub const FLOWS: usize = 4096;
/// Bytes kept over all flows. Full: as above.
pub const BYTES: usize = 16 * 1024 * 1024;
/// Bytes of segments of one flow that wait for an earlier one. Full: the stream is taken up after the hole.
pub const WAITING_BYTES: usize = 128 * 1024;
/// Segments that wait, likewise.
pub const WAITING_SEGMENTS: usize = 64;
/// A flow silent for longer is forgotten.
pub const IDLE: BootNanos = 120_000_000_000;
/// A hole older than this will not be filled: the host acknowledged what we did not see.
pub const HOLE: BootNanos = 2_000_000_000;
/// A segment further away from the expected one is of another connection, or forged.
const WINDOW: u32 = 4 * 1024 * 1024;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;

/// Puts the messages of all flows together.
#[derive(Debug, Default)]
pub struct Streams {
    flows: HashMap<Flow, (u64, Stream)>,
    /// By the turn in which a flow last had a packet: the first is the most silent one.
    turns: BTreeMap<u64, Flow>,
    turn: u64,
    bytes: usize,
    /// How often bytes were given up that may have belonged to a message.
    pub lost: u64,
}

impl Streams {
    /// Takes one packet, gives the messages that it completes (without their length prefix).
    pub fn push(
        &mut self,
        flow: Flow,
        sequence: u32,
        flags: u8,
        payload: &[u8],
        now: BootNanos,
    ) -> Vec<Vec<u8>> {
        self.forget_idle(now);
        let mut stream = self.take(&flow).unwrap_or_default();
        let mut messages = Vec::new();
        let ended = stream.push(sequence, flags, payload, now, &mut messages);
        self.lost += std::mem::take(&mut stream.lost);
        if !ended && stream.worth_keeping() {
            self.put(flow, stream);
        } else if !stream.is_empty() {
            self.lost += 1;
        }
        messages
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Bytes kept for messages that are not complete.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn take(&mut self, flow: &Flow) -> Option<Stream> {
        let (turn, stream) = self.flows.remove(flow)?;
        self.turns.remove(&turn);
        self.bytes -= stream.bytes();
        Some(stream)
    }

    fn put(&mut self, flow: Flow, stream: Stream) {
        while self.flows.len() >= FLOWS || (self.bytes + stream.bytes() > BYTES && !self.flows.is_empty()) {
            self.forget_most_silent();
        }
        self.turn += 1;
        self.bytes += stream.bytes();
        self.turns.insert(self.turn, flow);
        self.flows.insert(flow, (self.turn, stream));
    }

    fn forget_idle(&mut self, now: BootNanos) {
        let idle = |stream: &Stream| stream.last.saturating_add(IDLE) <= now;
        while self.most_silent().is_some_and(|(_, stream)| idle(stream)) {
            self.forget_most_silent();
        }
    }

    fn most_silent(&self) -> Option<(Flow, &Stream)> {
        let (_, flow) = self.turns.first_key_value()?;
        self.flows.get(flow).map(|(_, stream)| (*flow, stream))
    }

    fn forget_most_silent(&mut self) {
        if let Some(flow) = self.most_silent().map(|(flow, _)| flow)
            && let Some(stream) = self.take(&flow)
            && !stream.is_empty()
        {
            self.lost += 1;
        }
    }
}

/// One flow.
#[derive(Debug, Default)]
struct Stream {
    /// Sequence number after the last byte of `buffer`; none while we do not know where a message starts.
    next: Option<u32>,
    /// Sequence number of the first byte, if the SYN was seen and nothing was skipped since: then the
    /// boundaries are certain, whatever the messages look like.
    start: Option<u32>,
    /// From the start of the message that is not yet complete.
    buffer: Vec<u8>,
    /// Segments after a hole, in order of arrival.
    waiting: Vec<(u32, Vec<u8>)>,
    waiting_since: BootNanos,
    last: BootNanos,
    lost: u64,
}

impl Stream {
    /// True: the connection ended.
    fn push(
        &mut self,
        sequence: u32,
        flags: u8,
        payload: &[u8],
        now: BootNanos,
        out: &mut Vec<Vec<u8>>,
    ) -> bool {
        self.last = now;
        let mut sequence = sequence;
        if flags & SYN != 0 {
            sequence = sequence.wrapping_add(1);
            // A repeated SYN must not throw away what came since.
            if self.start != Some(sequence) {
                self.start_over(sequence);
                self.start = Some(sequence);
            }
        }
        if flags & RST != 0 {
            // Only the exact number ends a connection (RFC 5961, 3.2); a forged one must not make us forget.
            return self.next.is_none_or(|next| next == sequence);
        }
        if !payload.is_empty() {
            self.segment(sequence, payload, now);
            self.settle(now, out);
        }
        let end = sequence.wrapping_add(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        flags & FIN != 0 && self.next == Some(end)
    }

    fn segment(&mut self, sequence: u32, payload: &[u8], now: BootNanos) {
        let far = |next| distance(sequence, next).unsigned_abs() > WINDOW;
        match self.next {
            Some(next) if far(next) && !plausible(payload) => self.lost += 1,
            Some(next) if far(next) => {
                // The ports are used again, and the SYN was not seen.
                self.start_over(sequence);
                self.append(payload);
            }
            Some(next) if distance(sequence, next) <= 0 => self.append_after(next, sequence, payload),
            None if plausible(payload) => self.take_up(sequence, payload),
            _ => self.wait(sequence, payload, now),
        }
    }

    /// Takes out the messages that are complete, joins what waits, skips holes that will not be filled.
    fn settle(&mut self, now: BootNanos, out: &mut Vec<Vec<u8>>) {
        loop {
            self.take_messages(out);
            if self.join() {
                continue;
            }
            let bytes: usize = self.waiting.iter().map(|(_, payload)| payload.len()).sum();
            let old = !self.waiting.is_empty() && self.waiting_since.saturating_add(HOLE) <= now;
            if !old && bytes <= WAITING_BYTES && self.waiting.len() <= WAITING_SEGMENTS {
                return;
            }
            self.skip_hole(now);
        }
    }

    fn take_messages(&mut self, out: &mut Vec<Vec<u8>>) {
        let mut rest = self.buffer.as_slice();
        while let [high, low, body @ ..] = rest {
            if self.start.is_none() && !plausible(rest) {
                // We mistook something for a start.
                self.lost += 1;
                self.next = None;
                rest = &[];
                break;
            }
            let Some((message, after)) =
                body.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))
            else {
                break;
            };
            out.push(message.to_vec());
            rest = after;
        }
        let taken = self.buffer.len() - rest.len();
        self.buffer.drain(..taken);
    }

    /// Appends one waiting segment, if one fits. True if something changed.
    fn join(&mut self) -> bool {
        let Some(next) = self.next else { return false };
        let Some(at) = self.waiting.iter().position(|(sequence, _)| distance(*sequence, next) <= 0) else {
            return false;
        };
        let (sequence, payload) = self.waiting.remove(at);
        self.append_after(next, sequence, &payload);
        true
    }

    /// Takes the stream up at the first waiting segment that looks like a start; without one, drops the
    /// oldest. Each call makes `waiting` shorter.
    fn skip_hole(&mut self, now: BootNanos) {
        self.lost += 1;
        self.start = None;
        self.buffer.clear();
        self.next = None;
        self.waiting_since = now;
        // Numbers wrap: compare with one of them, they are all within one window.
        let base = self.waiting.first().map_or(0, |(sequence, _)| *sequence);
        self.waiting.sort_by_key(|(sequence, _)| distance(*sequence, base));
        match self.waiting.iter().position(|(_, payload)| plausible(payload)) {
            Some(at) => {
                let (sequence, payload) = self.waiting.remove(at);
                self.take_up(sequence, &payload);
            }
            None => drop(self.waiting.drain(..1.min(self.waiting.len()))),
        }
    }

    /// A message seems to start here; what waits from before can never be joined.
    fn take_up(&mut self, sequence: u32, payload: &[u8]) {
        self.next = Some(sequence);
        let before = self.waiting.len();
        self.waiting.retain(|(other, _)| distance(*other, sequence) > 0);
        self.lost += u64::try_from(before - self.waiting.len()).unwrap_or(u64::MAX);
        self.append(payload);
    }

    fn wait(&mut self, sequence: u32, payload: &[u8], now: BootNanos) {
        if self.waiting.is_empty() {
            self.waiting_since = now;
        }
        let known = |(s, p): &(u32, Vec<u8>)| *s == sequence && p.len() >= payload.len();
        if !self.waiting.iter().any(known) {
            self.waiting.push((sequence, payload.to_vec()));
        }
    }

    /// What was there first stays: bytes already read cannot be changed by a forged overlap.
    fn append_after(&mut self, next: u32, sequence: u32, payload: &[u8]) {
        let known = usize::try_from(next.wrapping_sub(sequence)).unwrap_or(usize::MAX);
        if let Some(fresh) = payload.get(known..) {
            self.append(fresh);
        }
    }

    fn append(&mut self, payload: &[u8]) {
        self.buffer.extend_from_slice(payload);
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.next = self.next.map(|next| next.wrapping_add(len));
    }

    fn start_over(&mut self, sequence: u32) {
        if !self.is_empty() {
            self.lost += 1;
        }
        *self = Self { next: Some(sequence), last: self.last, lost: self.lost, ..Self::default() };
    }

    fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.waiting.is_empty()
    }

    /// A stream of which nothing is known is as good as none.
    fn worth_keeping(&self) -> bool {
        self.next.is_some() || !self.waiting.is_empty()
    }

    /// Memory, so that empty flows and tiny segments count too.
    fn bytes(&self) -> usize {
        let waiting: usize = self.waiting.iter().map(|(_, payload)| payload.len() + 64).sum();
        size_of::<Self>() + self.buffer.len() + waiting
    }
}

/// From `to` to `sequence`; positive is later. Sequence numbers wrap (RFC 9293, 3.4).
fn distance(sequence: u32, to: u32) -> i32 {
    sequence.wrapping_sub(to).cast_signed()
}

/// Could these bytes, as far as they go, be the start of a response: length, id, flags, count of questions?
fn plausible(bytes: &[u8]) -> bool {
    let at = |index: usize| bytes.get(index).copied();
    let long_enough = match bytes {
        [high, low, ..] => u16::from_be_bytes([*high, *low]) >= 12,
        _ => true,
    };
    let response_to_query = at(4).is_none_or(|flags| flags & 0xf8 == 0x80);
    let questions = at(6).is_none_or(|high| high == 0) && at(7).is_none_or(|low| low <= 1);
    long_enough && response_to_query && questions
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLOW: Flow = Flow { server: [1; 16], client: [2; 16], client_port: 40000 };
    const PSH: u8 = 0x18;

    fn message(number: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0, number, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.resize(len.max(12), number);
        bytes
    }

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            bytes.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
            bytes.extend(message);
        }
        bytes
    }

    fn three() -> Vec<Vec<u8>> {
        vec![message(1, 12), message(2, 40), message(3, 13)]
    }

    /// Segments `(offset, bytes)` of a stream whose first byte has this number.
    fn play(streams: &mut Streams, first: u32, segments: &[(usize, &[u8])]) -> Vec<Vec<u8>> {
        let at = |offset: usize| first.wrapping_add(u32::try_from(offset).unwrap());
        segments.iter().flat_map(|(offset, bytes)| streams.push(FLOW, at(*offset), PSH, bytes, 0)).collect()
    }

    #[test]
    fn cut_at_every_position_wherever_the_numbers_start() {
        let bytes = framed(&three());
        for first in [0, 1000, u32::MAX, u32::MAX - 20, 0x7fff_fff0] {
            for cut in 0..=bytes.len() {
                let (a, b) = bytes.split_at(cut);
                let mut streams = Streams::default();
                assert_eq!(play(&mut streams, first, &[(0, a), (cut, b)]), three(), "{first} {cut}");
                assert_eq!(streams.lost, 0);

                let mut streams = Streams::default();
                streams.push(FLOW, first.wrapping_sub(1), SYN | 0x10, &[], 0);
                assert_eq!(play(&mut streams, first, &[(cut, b), (0, a)]), three(), "swapped {first} {cut}");
                assert_eq!(streams.lost, 0);
            }
        }
    }

    #[test]
    fn single_bytes_and_repeats() {
        let bytes = framed(&three());
        let mut streams = Streams::default();
        let mut segments: Vec<(usize, &[u8])> = bytes.chunks(1).enumerate().collect();
        assert_eq!(play(&mut streams, 7, &segments), three());
        assert_eq!(play(&mut streams, 7, &segments), Vec::<Vec<u8>>::new(), "sent again");
        segments = vec![(0, &bytes[..30]), (10, &bytes[10..50]), (0, &bytes), (bytes.len(), &bytes)];
        assert_eq!(play(&mut Streams::default(), 7, &segments), [three(), three()].concat());
    }

    #[test]
    fn what_was_read_cannot_be_changed() {
        let bytes = framed(&three());
        let forged = vec![0xff; 60];
        let segments = [(0, &bytes[..20]), (0, forged.as_slice()), (20, &bytes[20..])];
        let got = play(&mut Streams::default(), 7, &segments);
        assert_eq!(got[0], three()[0]);
    }

    #[test]
    fn a_stream_found_in_the_middle_is_taken_up_at_the_next_message() {
        let bytes = framed(&three());
        let second = 14;
        let mut streams = Streams::default();
        let got = play(&mut streams, 7, &[(5, &bytes[5..second]), (second, &bytes[second..])]);
        assert_eq!(got, three()[1..]);
        assert_eq!(streams.lost, 1);
    }

    #[test]
    fn a_hole_is_skipped_when_it_gets_old() {
        let bytes = framed(&three());
        let mut streams = Streams::default();
        streams.push(FLOW, 0, PSH, &bytes[..5], 0);
        let at = |offset: u32| offset + 100;
        assert!(streams.push(FLOW, at(0), PSH, &bytes, 0).is_empty());
        assert!(streams.push(FLOW, at(71), PSH, &bytes, HOLE - 1).is_empty());
        let got = streams.push(FLOW, at(0), PSH, &bytes, HOLE);
        assert_eq!(bytes.len(), 71);
        assert_eq!((got, streams.lost), ([three(), three()].concat(), 1));
    }

    #[test]
    fn a_hole_is_skipped_when_too_much_waits() {
        let one = framed(&[message(1, 1000)]);
        let mut streams = Streams::default();
        streams.push(FLOW, 0, PSH, &one[..5], 0);
        let segments: Vec<_> = (1..200).map(|n| (n * one.len(), one.as_slice())).collect();
        let got = play(&mut streams, 50, &segments);
        assert_eq!((got.len(), streams.lost), (199, 1));
        assert!(streams.bytes() < 1000);
    }

    #[test]
    fn a_connection_ends_and_its_ports_are_used_again() {
        let bytes = framed(&three());
        let mut streams = Streams::default();
        assert_eq!(streams.push(FLOW, 0, PSH | FIN, &bytes, 0).len(), 3);
        assert!(streams.is_empty());
        streams.push(FLOW, 0, PSH, &bytes[..20], 0);
        streams.push(FLOW, 10, RST, &[], 0);
        assert_eq!(streams.len(), 1, "not the exact number");
        streams.push(FLOW, 20, RST, &[], 0);
        assert_eq!((streams.len(), streams.lost), (0, 1));

        streams.push(FLOW, 0, PSH, &bytes[..20], 0);
        assert_eq!(streams.push(FLOW, 1 << 31, PSH, &bytes, 0), three(), "far away");
        assert_eq!(streams.lost, 2);
        streams.push(FLOW, 99, SYN, &[], 0);
        assert_eq!(streams.push(FLOW, 100, PSH, &bytes, 0), three());
        streams.push(FLOW, 99, SYN, &[], 0);
        assert_eq!(streams.push(FLOW, 100, PSH, &bytes, 0), Vec::<Vec<u8>>::new());
        assert_eq!(streams.lost, 2);
    }

    #[test]
    fn flows_bytes_and_time_are_bounded() {
        let part = [&60_000u16.to_be_bytes(), message(1, 50_000).as_slice()].concat();
        let mut streams = Streams::default();
        for port in 0..1000 {
            streams.push(Flow { client_port: port, ..FLOW }, 0, PSH, &part, 0);
            assert!(streams.bytes() <= BYTES);
        }
        assert_eq!(streams.lost as usize + streams.len(), 1000);

        let mut streams = Streams::default();
        for port in 0..5000 {
            streams.push(Flow { client_port: port, ..FLOW }, 0, PSH, &part[..5], 0);
        }
        assert_eq!((streams.len(), streams.lost), (FLOWS, 904));
        streams.push(FLOW, 0, PSH, &[], IDLE);
        assert_eq!((streams.len(), streams.lost, streams.bytes()), (0, 5000, 0));
    }

    /// Messages, and the pieces `(offset, bytes)` of their stream.
    type Chopped = (Vec<Vec<u8>>, Vec<(usize, Vec<u8>)>);

    /// Shuffled within a distance, some repeated.
    fn pieces() -> impl Strategy<Value = Chopped> {
        let lens = prop::collection::vec(12usize..300, 1..8);
        (lens, prop::collection::vec((1usize..90, 0usize..12, any::<bool>()), 1..40)).prop_map(
            |(lens, cuts)| {
                let messages: Vec<_> = lens.iter().zip(1..).map(|(len, n)| message(n, *len)).collect();
                let bytes = framed(&messages);
                let mut segments = Vec::new();
                let mut at = 0;
                for (index, (len, delay, again)) in cuts.iter().cycle().enumerate() {
                    let end = (at + len).min(bytes.len());
                    segments.push((index + delay, (at, bytes[at..end].to_vec())));
                    if *again {
                        segments.push((index + 5, (at / 2, bytes[at / 2..end].to_vec())));
                    }
                    at = end;
                    if at == bytes.len() {
                        break;
                    }
                }
                segments.sort_by_key(|(turn, _)| *turn);
                (messages, segments.into_iter().map(|(_, segment)| segment).collect())
            },
        )
    }

    proptest! {
        #[test]
        fn any_order_gives_the_same_messages((messages, segments) in pieces(), first: u32) {
            let mut streams = Streams::default();
            streams.push(FLOW, first.wrapping_sub(1), SYN, &[], 0);
            let segments: Vec<_> = segments.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
            prop_assert_eq!(play(&mut streams, first, &segments), messages);
            prop_assert_eq!(streams.lost, 0);
        }

        #[test]
        fn hostile_segments_stay_within_bounds(
            segments in prop::collection::vec((0u16..3, 0u32..2000, any::<u8>(), 0usize..300, any::<u8>()), 0..300),
        ) {
            let mut streams = Streams::default();
            for ((port, sequence, flags, len, byte), now) in segments.into_iter().zip(0..) {
                let flow = Flow { client_port: port, ..FLOW };
                streams.push(flow, sequence, flags & 0x17, &vec![byte; len], now * 100_000_000);
                prop_assert!(streams.len() <= 3);
                let bytes: usize = streams.flows.values().map(|(_, stream)| stream.bytes()).sum();
                prop_assert_eq!(bytes, streams.bytes());
                prop_assert_eq!(streams.turns.len(), streams.len());
            }
        }
    }
}
