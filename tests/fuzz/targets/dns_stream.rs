//! The first byte chooses: a true stream, chopped and shuffled, gives its messages; anything else stays
//! within bounds.
#![no_main]

use enforcer::engine::dns::stream::{BYTES, FLOWS, Flow, Streams};
use libfuzzer_sys::fuzz_target;

const SYN: u8 = 2;

fn flow(port: u16) -> Flow {
    Flow { server: [0; 16], client: [0; 16], client_port: port }
}

fuzz_target!(|bytes: &[u8]| match bytes {
    [0, rest @ ..] => chopped(rest),
    [_, rest @ ..] => hostile(rest),
    [] => {}
});

/// Pairs of bytes are (length of a piece, how late it comes); the same bytes are the content.
fn chopped(bytes: &[u8]) {
    let Some((first, cuts)) = bytes.split_first_chunk::<4>() else { return };
    let first = u32::from_be_bytes(*first);
    let messages: Vec<&[u8]> = cuts.chunks(37).collect();
    let mut stream = Vec::new();
    for message in &messages {
        stream.extend(u16::try_from(message.len()).unwrap_or_default().to_be_bytes());
        stream.extend_from_slice(message);
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    for (turn, cut) in cuts.chunks(2).cycle().enumerate() {
        if at == stream.len() {
            break;
        }
        // An overlap of up to three bytes with the piece before.
        let from = at - usize::from(cut[0] >> 6).min(at);
        let end = (at + 1 + usize::from(cut[0] & 0x3f)).min(stream.len());
        pieces.push((turn + usize::from(cut.last().copied().unwrap_or(0) & 7), from, end));
        at = end;
    }
    pieces.sort_unstable();
    let mut streams = Streams::default();
    streams.push(flow(1), first.wrapping_sub(1), SYN, &[], 0);
    let mut got = Vec::new();
    for (_, from, end) in pieces {
        let sequence = first.wrapping_add(u32::try_from(from).unwrap_or_default());
        got.extend(streams.push(flow(1), sequence, 0, &stream[from..end], 0));
    }
    assert_eq!(got, messages);
    assert_eq!(streams.lost, 0);
}

/// Records of port, sequence, flags, pause, length, payload.
fn hostile(mut bytes: &[u8]) {
    let mut streams = Streams::default();
    let (mut now, mut sent, mut got) = (0, 0, 0);
    while let [port, s0, s1, flags, pause, len, rest @ ..] = bytes {
        let (payload, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        bytes = rest;
        now += u64::from(*pause) * 100_000_000;
        // Numbers near each other, and near the wrap.
        let sequence = (u32::from(*s0) << 24).wrapping_add(u32::from(*s1)).wrapping_sub(128);
        let messages = streams.push(flow(u16::from(*port)), sequence, *flags, payload, now);
        sent += payload.len();
        got += messages.iter().map(|message| message.len() + 2).sum::<usize>();
        assert!(got <= sent, "bytes out of nothing");
        assert!(streams.len() <= FLOWS && streams.bytes() <= BYTES);
    }
    streams.push(flow(0), 0, 0, &[], u64::MAX);
    assert_eq!((streams.len(), streams.bytes()), (0, 0));
}
