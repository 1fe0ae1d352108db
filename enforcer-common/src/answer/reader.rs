//! Names of a message: decompressed, lower-cased, checked.

use core::ops::ControlFlow;

use super::{MESSAGE_BYTES, Walk};
use crate::name::{ODD, TEXT, Tables};
use crate::repeat::Step;

/// A name is 255 bytes at most (RFC 1035, 2.3.4), of which the root's length byte is one.
const WIRE: u32 = 254;
/// Labels of the longest name, and as many pointers as `domain` follows.
const TURNS: u32 = 127 + 255;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// A hash of the name in lower case, by which two names of one message are held to be the same. It need not be strong:
    /// who could find a collision can as well write the name itself.
    pub(super) identity: u64,
    at: u32,
    /// Nothing is read at or behind it.
    limit: u32,
    /// Of the name where it stands, before any pointer was followed. 0: not known yet.
    end: u32,
    /// Bytes of the current label.
    label: u32,
    wire: u32,
    odd: u32,
    /// The root label was reached.
    done: u32,
    reserved: u32,
}

impl State {
    pub(super) const EMPTY: Self =
        Self { identity: 0, at: 0, limit: 0, end: 0, label: 0, wire: 0, odd: 0, done: 0, reserved: 0 };

    pub(super) fn odd(&self) -> bool {
        self.odd != 0
    }

    #[inline(always)]
    fn absorb(&mut self, word: u64) {
        // As FNV-1a takes bytes; the rotation brings the high ones down.
        self.identity = (self.identity ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
    }
}

impl<T: Tables> Walk<'_, T> {
    /// Reads the name at `at` into `scratch.name`. Gives the offset behind it; None if it is malformed.
    #[inline(always)]
    pub(super) fn read_name(&mut self, at: u32, limit: u32) -> Option<u32> {
        let scratch = &mut *self.scratch;
        scratch.name.len = 0;
        scratch.name.labels = 0;
        scratch.reader = State { identity: 0xcbf2_9ce4_8422_2325, at, limit, ..State::EMPTY };
        T::repeat::<Label, _>(TURNS, self);
        let reader = &self.scratch.reader;
        (reader.done != 0).then_some(reader.end)
    }
}

/// A label, or a pointer. Breaks at the root and at what is malformed.
struct Label;

impl<T: Tables> Step<Walk<'_, T>> for Label {
    #[inline(always)]
    fn step(walk: &mut Walk<'_, T>, _: u32) -> ControlFlow<()> {
        let scratch = &mut *walk.scratch;
        let at = scratch.reader.at;
        if at >= scratch.reader.limit {
            return ControlFlow::Break(());
        }
        let byte = scratch.byte(at) as u32;
        if byte == 0 {
            scratch.reader.done = 1;
            if scratch.reader.end == 0 {
                scratch.reader.end = at + 1;
            }
            return ControlFlow::Break(());
        }
        if byte >= 0x40 {
            // A pointer, which must point before itself; so it ends, for the name's length is bounded.
            let target = scratch.u16(at) as u32 & 0x3fff;
            if byte < 0xc0 || at + 1 >= scratch.reader.limit || target >= at {
                return ControlFlow::Break(());
            }
            if scratch.reader.end == 0 {
                scratch.reader.end = at + 2;
            }
            scratch.reader.at = target;
            return ControlFlow::Continue(());
        }
        let next = at + 1 + byte;
        scratch.reader.wire += byte + 1;
        if next > scratch.reader.limit || scratch.reader.wire > WIRE {
            return ControlFlow::Break(());
        }
        scratch.name.begin_label();
        scratch.reader.label = byte;
        scratch.reader.at = at + 1;
        scratch.reader.absorb(byte.into());
        T::repeat::<LabelWord, _>(byte.div_ceil(8), walk);
        walk.scratch.name.len += byte;
        walk.scratch.reader.at = next;
        ControlFlow::Continue(())
    }
}

/// Eight bytes of a label, or what is left of it.
struct LabelWord;

impl<T: Tables> Step<Walk<'_, T>> for LabelWord {
    #[inline(always)]
    fn step(walk: &mut Walk<'_, T>, index: u32) -> ControlFlow<()> {
        let scratch = &mut *walk.scratch;
        let done = 8 * index;
        let left = scratch.reader.label.wrapping_sub(done);
        let from = scratch.reader.at.wrapping_add(done) as usize % MESSAGE_BYTES;
        let mut word = 0;
        let mut byte = 0;
        while byte < 8 {
            word |= (scratch.message[from + byte] as u64) << (8 * byte);
            byte += 1;
        }
        let ours = if left >= 8 { u64::MAX } else { (1 << (8 * (left & 7))) - 1 };
        let (lower, odd) = canonical(word & ours);
        let odd = odd & ours;
        // Each odd byte becomes ODD.
        let all = (odd >> 7).wrapping_mul(0xff);
        let lower = lower & !all | (ODD as u64 * ONES) & all;
        scratch.reader.odd |= (odd != 0) as u32;
        // The odd bytes as they are: two names that differ in them are not the same.
        scratch.reader.absorb(lower ^ (word & ours & all));
        let to = scratch.name.len.wrapping_add(done) as usize % TEXT;
        let mut byte = 0;
        while byte < 8 {
            scratch.name.text[to + byte] = (lower >> (8 * byte)) as u8;
            byte += 1;
        }
        ControlFlow::Continue(())
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x80 * ONES;

/// Eight bytes in lower case, and the highest bit of each that is not printable ASCII, or a dot or backslash.
#[inline(always)]
pub(crate) const fn canonical(word: u64) -> (u64, u64) {
    // Sums of seven bits carry into the eighth, never into the next byte.
    let low = word & !HIGH;
    let upper = (low + (0x80 - 0x41) * ONES) & !(low + (0x80 - 0x5b) * ONES) & !word & HIGH;
    let printable = (low + (0x80 - 0x21) * ONES) & !(low + ONES);
    let other_than_dot = ((word ^ (b'.' as u64 * ONES)) & !HIGH) + 0x7f * ONES;
    let other_than_backslash = ((word ^ (b'\\' as u64 * ONES)) & !HIGH) + 0x7f * ONES;
    let plain = printable & other_than_dot & other_than_backslash & !word;
    (word | upper >> 2, !plain & HIGH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bytes_at_once_are_as_one_by_one() {
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                for beside in [0x00, 0x2e, 0x41, 0x7f, 0x80, 0xff] {
                    let mut bytes = [beside; 8];
                    bytes[place] = byte;
                    let (lower, odd) = canonical(u64::from_le_bytes(bytes));
                    let plain = (0x21..=0x7e).contains(&byte) && byte != b'.' && byte != b'\\';
                    assert_eq!(lower.to_le_bytes()[place], byte.to_ascii_lowercase(), "{byte:#x}");
                    assert_eq!(odd.to_le_bytes()[place], if plain { 0 } else { 0x80 }, "{byte:#x}");
                }
            }
        }
    }
}
