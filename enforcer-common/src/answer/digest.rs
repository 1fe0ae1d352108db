//! A hash of a whole message, by which one that was just read is known again.

use core::ops::ControlFlow;

use super::{MESSAGE_BYTES, Scratch};
use crate::name::SuffixHash;
use crate::repeat::{Repeat, Step};

impl Scratch {
    /// Of everything but the transaction id. `hash` is keyed: who could make two messages the same would have one of them
    /// taken for the other.
    #[inline(always)]
    pub fn digest<R: Repeat>(&mut self, mut hash: SuffixHash) -> u64 {
        hash.push(self.word(0) & !ID);
        self.hash = hash;
        self.hashed = 1;
        let words = (self.len / 8).saturating_sub(1);
        R::repeat::<Words<AT_ONCE>, _>(words / AT_ONCE, &mut Digest(self));
        self.hashed += words / AT_ONCE * AT_ONCE;
        R::repeat::<Words<1>, _>(words % AT_ONCE, &mut Digest(self));
        self.hash.finish(self.word(self.len / 8), self.len)
    }

    /// Eight bytes, the first one lowest.
    #[inline(always)]
    fn word(&self, index: u32) -> u64 {
        const { assert!(core::mem::offset_of!(Self, message).is_multiple_of(8)) };
        let from = 8 * index as usize % MESSAGE_BYTES;
        // SAFETY: within the message, which begins at a multiple of eight bytes, as this does.
        u64::from_le(unsafe { self.message.as_ptr().add(from).cast::<u64>().read() })
    }
}

/// The bytes of the transaction id.
const ID: u64 = 0xffff;
/// Words that are pushed in one turn.
const AT_ONCE: u32 = 4;

/// The kernel wants the context of a loop on the stack.
struct Digest<'a>(&'a mut Scratch);

/// Those that follow `hashed`.
struct Words<const COUNT: u32>;

impl<const COUNT: u32> Step<Digest<'_>> for Words<COUNT> {
    #[inline(always)]
    fn step(Digest(scratch): &mut Digest<'_>, index: u32) -> ControlFlow<()> {
        let begin = scratch.hashed.wrapping_add(COUNT * index);
        let mut turn = 0;
        while turn < COUNT {
            let word = scratch.word(begin.wrapping_add(turn));
            scratch.hash.push(word);
            turn += 1;
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::collections::HashSet;

    use super::*;
    use crate::repeat::plainly;

    struct Plainly;

    impl Repeat for Plainly {
        fn repeat<S: Step<C>, C>(times: u32, context: &mut C) {
            plainly::<S, C>(times, context);
        }
    }

    /// Every byte and the length count, but for the id and what an earlier message left behind the end.
    #[test]
    fn what_counts_and_what_does_not() {
        let mut scratch = Box::new(Scratch::EMPTY);
        for len in [12, 16, 23, 24, 63, 64, 65, 200] {
            scratch.len = len;
            let digest = |scratch: &mut Scratch| scratch.digest::<Plainly>(SuffixHash::new([1, 2]));
            let mut seen = HashSet::from([digest(&mut scratch)]);
            for at in 0..260 {
                scratch.message[at] ^= 1;
                let counts = (2..len as usize).contains(&at);
                assert_eq!(seen.insert(digest(&mut scratch)), counts, "byte {at} of {len}");
                scratch.message[at] ^= 1;
            }
            scratch.len = len + 1;
            assert!(seen.insert(digest(&mut scratch)), "one byte more than {len}");
            scratch.len = len;
            assert_ne!(scratch.digest::<Plainly>(SuffixHash::new([1, 3])), digest(&mut scratch), "the key");
        }
    }
}
