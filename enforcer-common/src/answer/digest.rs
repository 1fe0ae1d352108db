//! A hash of a whole message, by which one that was just read is known again.

use core::ops::ControlFlow;

use super::{MESSAGE_BYTES, Scratch};
use crate::name::SuffixHash;
use crate::repeat::{Repeat, Step};

/// Words that are pushed in one turn.
const AT_ONCE: u32 = 8;

impl Scratch {
    /// Of everything but the transaction id. `hash` is keyed: who could make two messages the same would have one of them
    /// taken for the other.
    #[inline(always)]
    pub fn digest<R: Repeat>(&self, hash: SuffixHash) -> u64 {
        let mut digest = Digest { scratch: self, hash };
        R::repeat::<Words, _>(self.len.div_ceil(8 * AT_ONCE), &mut digest);
        digest.hash.finish(0, self.len)
    }

    /// The eight bytes at `at`, a multiple of eight. Bytes behind the message are 0.
    #[inline(always)]
    pub(super) fn word(&self, at: u32) -> u64 {
        const { assert!(core::mem::offset_of!(Self, message).is_multiple_of(8)) };
        let from = (at & !7) as usize % MESSAGE_BYTES;
        // SAFETY: within the message, which begins at a multiple of eight bytes, as this does.
        let word = unsafe { self.message.as_ptr().add(from).cast::<u64>().read() };
        let left = self.len.saturating_sub(at);
        u64::from_le(word) & if left >= 8 { u64::MAX } else { (1 << (8 * (left & 7))) - 1 }
    }
}

struct Digest<'a> {
    scratch: &'a Scratch,
    hash: SuffixHash,
}

/// The bytes of the transaction id.
const ID: u64 = 0xffff;

struct Words;

impl Step<Digest<'_>> for Words {
    #[inline(always)]
    fn step(digest: &mut Digest<'_>, index: u32) -> ControlFlow<()> {
        let begin = 8 * AT_ONCE * index;
        digest.hash.push(digest.scratch.word(begin) & if index == 0 { !ID } else { u64::MAX });
        let mut turn = 1;
        while turn < AT_ONCE {
            digest.hash.push(digest.scratch.word(begin + 8 * turn));
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
        for len in [12, 16, 63, 64, 65, 200] {
            scratch.len = len;
            let digest = |scratch: &Scratch| scratch.digest::<Plainly>(SuffixHash::new([1, 2]));
            let mut seen = HashSet::from([digest(&scratch)]);
            for at in 0..260 {
                scratch.message[at] ^= 1;
                let counts = (2..len as usize).contains(&at);
                assert_eq!(seen.insert(digest(&scratch)), counts, "byte {at} of {len}");
                scratch.message[at] ^= 1;
            }
            scratch.len = len + 1;
            assert!(seen.insert(digest(&scratch)), "one byte more than {len}");
            scratch.len = len;
            assert_ne!(scratch.digest::<Plainly>(SuffixHash::new([1, 3])), digest(&scratch), "the key");
        }
    }
}
