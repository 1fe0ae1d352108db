//! Names of a message: decompressed, lower-cased, checked.

use core::ops::ControlFlow;

use super::{Scratch, Walk};
use crate::name::{ODD, TEXT, Tables};
use crate::repeat::Step;

/// A name is 255 bytes at most (RFC 1035, 2.3.4), of which the root's length byte is one.
const WIRE: u32 = 254;
/// Bytes of the longest name, and as many pointers: no honest name has more.
const TURNS: u32 = 512;

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
    /// Bytes of the current label still to come.
    left: u32,
    wire: u32,
    odd: u32,
    /// The root label was reached.
    done: u32,
    reserved: u32,
}

impl State {
    pub(super) const EMPTY: Self =
        Self { identity: 0, at: 0, limit: 0, end: 0, left: 0, wire: 0, odd: 0, done: 0, reserved: 0 };

    pub(super) fn odd(&self) -> bool {
        self.odd != 0
    }

    #[inline(always)]
    fn absorb(&mut self, byte: u8) {
        // FNV-1a.
        self.identity = (self.identity ^ byte as u64).wrapping_mul(0x0100_0000_01b3);
    }
}

impl<T: Tables> Walk<'_, T> {
    /// Reads the name at `at` into `scratch.name`. Gives the offset behind it; None if it is malformed.
    #[inline(always)]
    pub(super) fn read_name(&mut self, at: u32, limit: u32) -> Option<u32> {
        let scratch = &mut *self.scratch;
        scratch.name.len = 0;
        scratch.reader = State { identity: 0xcbf2_9ce4_8422_2325, at, limit, ..State::EMPTY };
        T::repeat::<NameByte, _>(TURNS, self);
        let reader = &self.scratch.reader;
        (reader.done != 0).then_some(reader.end)
    }
}

/// One byte of a label, a label's length, or a pointer. Breaks at the root and at what is malformed.
struct NameByte;

impl<T: Tables> Step<Walk<'_, T>> for NameByte {
    #[inline(always)]
    fn step(walk: &mut Walk<'_, T>, _: u32) -> ControlFlow<()> {
        let scratch = &mut *walk.scratch;
        let at = scratch.reader.at;
        if at >= scratch.reader.limit {
            return ControlFlow::Break(());
        }
        let byte = scratch.byte(at);
        if scratch.reader.left != 0 {
            scratch.reader.left -= 1;
            let lower = byte | (byte.wrapping_sub(b'A') < 26) as u8 * 0x20;
            let plain = lower.wrapping_sub(0x21) <= 0x7e - 0x21 && lower != b'.' && lower != b'\\';
            scratch.reader.odd |= !plain as u32;
            scratch.reader.absorb(lower);
            append(scratch, if plain { lower } else { ODD });
        } else if byte == 0 {
            scratch.reader.done = 1;
            if scratch.reader.end == 0 {
                scratch.reader.end = at + 1;
            }
            return ControlFlow::Break(());
        } else if byte < 0x40 {
            scratch.reader.left = byte as u32;
            scratch.reader.wire += byte as u32 + 1;
            if scratch.reader.wire > WIRE {
                return ControlFlow::Break(());
            }
            scratch.reader.absorb(byte);
            if scratch.name.len != 0 {
                append(scratch, b'.');
            }
        } else {
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
        scratch.reader.at = at + 1;
        ControlFlow::Continue(())
    }
}

#[inline(always)]
fn append(scratch: &mut Scratch, byte: u8) {
    let name = &mut scratch.name;
    name.text[name.len as usize % TEXT] = byte;
    name.len += 1;
}
