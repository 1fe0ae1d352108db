//! Records of the ring, from bytes.

use crate::engine::process::Tail;
use enforcer_common::event::{
    AnswerRecord, ConnectRecord, KIND_ANSWER, KIND_CONNECT, KIND_FLOW, KIND_SOCKET,
};

/// One record.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// With its tail; of `KIND_CONNECT`, `KIND_SOCKET` or `KIND_FLOW`.
    Connect(ConnectRecord, Tail<'a>),
    /// With the packet's payload.
    Answer(AnswerRecord, &'a [u8]),
}

impl<'a> Record<'a> {
    /// `None`: not what the kernel side writes.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let kind = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        match kind {
            KIND_CONNECT | KIND_SOCKET | KIND_FLOW => {
                let record: ConnectRecord = prefix(bytes)?;
                let tail = Tail::parse(&record, bytes.get(size_of::<ConnectRecord>()..)?)?;
                Some(Self::Connect(record, tail))
            }
            KIND_ANSWER => {
                let header: AnswerRecord = prefix(bytes)?;
                let payload = bytes.get(size_of::<AnswerRecord>()..)?.get(..header.len as usize)?;
                Some(Self::Answer(header, payload))
            }
            _ => None,
        }
    }
}

/// Records: `repr(C)`, integers and byte arrays only, so that every bit pattern is a value.
trait Wire: Copy {}
impl Wire for ConnectRecord {}
impl Wire for AnswerRecord {}

fn prefix<T: Wire>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: long enough (checked), any alignment (unaligned read), any bits (`Wire`).
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_foreign_bytes_are_no_record() {
        let mut bytes = [0u8; 200];
        assert!(Record::parse(&bytes).is_none(), "kind 0");
        assert!(Record::parse(&bytes[..3]).is_none());
        bytes[0] = KIND_CONNECT as u8;
        assert!(matches!(Record::parse(&bytes), Some(Record::Connect(..))));
        assert!(Record::parse(&bytes[..175]).is_none());
        bytes[0] = KIND_ANSWER as u8;
        bytes[4] = 120;
        assert!(matches!(Record::parse(&bytes), Some(Record::Answer(_, payload)) if payload.len() == 120));
        bytes[4] = 121;
        assert!(Record::parse(&bytes).is_none(), "the payload is longer than the record");
    }
}
