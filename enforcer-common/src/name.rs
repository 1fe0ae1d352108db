//! The one matcher of names: text against the policy's tables, the same steps in the kernel and in user space.
//!
//! A name is matched as lower-cased text without the trailing dot. Exact and suffix patterns are hashes of
//! suffixes: the text is absorbed from its end, and at the beginning of every label the hash so far is looked
//! up in a table of buckets, each a line of the cache. All other globs are automata that read the text from its
//! beginning, one word of memory a byte.

use core::ops::ControlFlow;

use crate::condition::Seats;
use crate::repeat::{Repeat, Step};
use crate::verdict::{NO_RULE, RuleId};

/// SipHash-1-3 of words that come one by one, finished as often as wanted.
///
/// Keyed, because whoever is denied chooses names: without the key nobody finds two that collide.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SuffixHash([u64; 4]);

impl SuffixHash {
    #[inline(always)]
    pub const fn new([k0, k1]: [u64; 2]) -> Self {
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    /// Eight bytes, the first one lowest.
    #[inline(always)]
    pub const fn push(&mut self, word: u64) {
        let Self([a, b, c, d]) = *self;
        let [a, b, c, d] = round([a, b, c, d ^ word]);
        *self = Self([a ^ word, b, c, d]);
    }

    /// The hash of `len` bytes: the words pushed so far, and of `rest` those bytes that make no whole word.
    #[inline(always)]
    pub const fn finish(&self, rest: u64, len: u32) -> u64 {
        let mut hash = *self;
        hash.push(low_bytes(rest, len & 7) | (len as u64) << 56);
        let Self([a, b, c, d]) = hash;
        let [a, b, c, d] = round(round(round([a, b, c ^ 0xff, d])));
        a ^ b ^ c ^ d
    }
}

/// The lowest `count` bytes of a word, at most 7.
#[inline(always)]
const fn low_bytes(word: u64, count: u32) -> u64 {
    word & ((1 << (8 * (count & 7))) - 1)
}

#[inline(always)]
const fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// A rule and its place in the policy set, as one number: of two the lesser one comes first in the set.
pub type Placed = u64;
pub const NOBODY: Placed = u64::MAX;

#[inline(always)]
pub const fn placed(place: u32, rule: RuleId) -> Placed {
    (place as u64) << 32 | rule as u64
}

#[inline(always)]
pub const fn rule(placed: Placed) -> RuleId {
    if placed == NOBODY { NO_RULE } else { placed as u32 }
}

/// The first rule of each action that names something, and all conditional ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Match {
    pub allow: Placed,
    pub deny: Placed,
    pub audit: Placed,
    pub conditional: Seats,
}

impl Match {
    pub const NONE: Self = Self { allow: NOBODY, deny: NOBODY, audit: NOBODY, conditional: Seats::NONE };

    pub const fn merge(mut self, other: Self) -> Self {
        self.absorb(&other);
        self
    }

    /// In place: the kernel's stack has no room for many of these.
    #[inline(always)]
    pub const fn absorb(&mut self, other: &Self) {
        const fn least(a: Placed, b: Placed) -> Placed {
            if a < b { a } else { b }
        }
        self.allow = least(self.allow, other.allow);
        self.deny = least(self.deny, other.deny);
        self.audit = least(self.audit, other.audit);
        self.conditional.add(&other.conditional);
    }

    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.allow & self.deny & self.audit == NOBODY && self.conditional.is_none()
    }

    /// Nothing is refused or audited on account of it. `exceptions`: the conditional rules that allow.
    #[inline(always)]
    pub const fn is_innocent(&self, exceptions: Option<&Seats>) -> bool {
        const NONE: Seats = Seats::NONE;
        let exceptions = match exceptions {
            Some(exceptions) => exceptions,
            None => &NONE,
        };
        self.deny & self.audit == NOBODY && self.conditional.within(exceptions)
    }
}

/// What exact and suffix patterns say about one domain. A glob's match stands in `itself`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain {
    pub itself: Match,
    pub below: Match,
}

impl Domain {
    pub const NONE: Self = Self { itself: Match::NONE, below: Match::NONE };
}

/// One place of the table of names.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The suffix hash, low half first.
    hash: [u32; 2],
    /// One more than the index of the domain; 0: the slot is free.
    said: u32,
}

pub const SLOTS: usize = 5;
/// Buckets in which a name may stand: its home, and those behind it while all before are full.
pub const PROBES: u32 = 4;

/// A line of the cache. Its slots are taken from the first one on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    slots: [Slot; SLOTS],
    reserved: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    pub const EMPTY: Self = Self { slots: [Slot { hash: [0; 2], said: 0 }; SLOTS], reserved: 0 };

    /// False: there is no free slot.
    pub fn put(&mut self, hash: u64, said: u32) -> bool {
        let Some(free) = self.slots.iter_mut().find(|slot| slot.said == 0) else { return false };
        *free = Slot { hash: halves(hash), said };
        true
    }
}

#[inline(always)]
const fn halves(hash: u64) -> [u32; 2] {
    [hash as u32, (hash >> 32) as u32]
}

/// Where the names with this hash stand first, of so many buckets.
#[inline(always)]
pub const fn home(hash: u64, buckets: u32) -> u32 {
    (((hash >> 32) * buckets as u64) >> 32) as u32
}

/// Which word of a filter of so many is a domain's, and its bits there (a blocked Bloom filter; Putze, Sanders, Singler,
/// 2007). With a byte a domain, one name in some twenty that is not there passes.
#[inline(always)]
pub const fn filter_bits(hash: u64, words: u32) -> (u32, u64) {
    let at = ((hash & 0xffff_ffff) * words as u64) >> 32;
    // Of the half that chooses the bucket the low bits, which hardly do.
    let bits = 1 << (hash >> 32 & 63) | 1 << (hash >> 38 & 63) | 1 << (hash >> 44 & 63);
    (at as u32, bits)
}

/// One more than the index of what is said about the domain with this hash; 0: nothing is.
#[inline(always)]
fn find<T: Tables>(tables: &T, hash: u64) -> u32 {
    let words = tables.header().filter;
    if words != 0 {
        let (at, bits) = filter_bits(hash, words);
        if tables.filter(at) & bits != bits {
            return 0;
        }
    }
    let buckets = tables.header().buckets;
    let [low, high] = halves(hash);
    let mut at = home(hash, buckets);
    let mut probe = 0;
    while probe < PROBES {
        let Some(bucket) = tables.bucket(at) else { return 0 };
        let mut index = 0;
        while index < SLOTS {
            let slot = &bucket.slots[index];
            if slot.said == 0 || (slot.hash[0] == low && slot.hash[1] == high) {
                return slot.said;
            }
            index += 1;
        }
        at += 1;
        if at >= buckets {
            at = 0;
        }
        probe += 1;
    }
    0
}

/// Automata that one policy may have. One is best; several together stay small where one would not.
pub const AUTOMATA: usize = 16;
/// Words of an automaton's memory that are fetched at once.
pub const BLOCK: usize = 16;

/// What a matcher must know before it looks anything up.
///
/// An automaton's state is the index of its first word; the word at `state + classes[byte]` is the next state,
/// the one at `state + accept` one more than the index of the domain that is matched if the name ends here.
/// State 0 is dead, match 0 none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub key: [u64; 2],
    /// How many entries of `starts` there are.
    pub automata: u32,
    /// The class that stands for the end of the name.
    pub accept: u32,
    /// Of the table of names.
    pub buckets: u32,
    /// Words of the filter before it; 0: there is none, because the table itself stays in the cache.
    pub filter: u32,
    /// Bit n: a domain of n labels stands in the table (bit 63: of 63 or more). Suffixes of other lengths need not
    /// be looked up: most names have one that nobody denies, the top-level domain.
    pub lengths: u64,
    /// 1: some rule refuses no shared address, so it must be known which addresses are shared.
    pub shared: u32,
    pub reserved: u32,
    pub starts: [u32; AUTOMATA],
    pub classes: [u8; 256],
}

const _: () = assert!(size_of::<Header>() == 16 + 8 + 8 + 8 + 8 + 4 * AUTOMATA + 256);

impl Header {
    /// Matches nothing.
    pub const NONE: Self = Self {
        key: [0; 2],
        automata: 0,
        accept: 0,
        buckets: 1,
        filter: 0,
        lengths: 0,
        shared: 0,
        reserved: 0,
        starts: [0; AUTOMATA],
        classes: [0; 256],
    };
}

/// The bit of `Header::lengths` for domains of so many labels.
#[inline(always)]
pub const fn length_bit(labels: u32) -> u64 {
    1 << if labels < 63 { labels } else { 63 }
}

/// One generation of a policy's tables: maps in the kernel, vectors in user space.
pub trait Tables: Repeat {
    fn header(&self) -> &Header;
    /// The bucket of the table of names with this index.
    fn bucket(&self, index: u32) -> Option<&Bucket>;
    /// The word of the filter with this index.
    fn filter(&self, index: u32) -> u64;
    /// The domain with this index.
    fn domain(&self, index: u32) -> Option<&Domain>;
    /// The word of the automata's memory with this index; 0 beyond its end.
    fn word(&self, index: u32) -> u32;
}

/// Room for a name's text: a power of two, so that a mask keeps every index within.
pub const TEXT: usize = 256;
/// Labels of a name: also a power of two.
pub const LABELS: usize = 128;

/// A name on its way through the tables. Lives in map memory in the kernel: what the verifier knows nothing
/// about it need not keep apart.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// Eight bytes more, so that words can be written across the end.
    pub text: [u8; TEXT + 8],
    pub len: u32,
    pub labels: u32,
    /// Where each label begins.
    pub starts: [u8; LABELS],
    state: u32,
    /// Words of the text that were pushed into `hash`.
    words: u32,
    hash: SuffixHash,
    pub matched: Match,
    /// The hash of the longest domain in the table that it is or is below; 0: of none.
    pub domain: u64,
}

impl Name {
    pub const EMPTY: Self = Self {
        text: [0; TEXT + 8],
        len: 0,
        labels: 0,
        starts: [0; LABELS],
        state: 0,
        words: 0,
        hash: SuffixHash::new([0; 2]),
        matched: Match::NONE,
        domain: 0,
    };

    /// A label begins at the end of the text.
    #[inline(always)]
    pub fn begin_label(&mut self) {
        if self.len != 0 {
            self.text[self.len as usize % TEXT] = b'.';
            self.len += 1;
        }
        self.starts[self.labels as usize % LABELS] = self.len as u8;
        self.labels += 1;
    }

    /// The next eight bytes from the end of the text towards its beginning, the last byte lowest. What would
    /// stand before the beginning is anything.
    #[inline(always)]
    fn next_word(&self) -> u64 {
        let at = self.len.wrapping_sub(8 * self.words).wrapping_sub(8);
        let mut word = 0;
        let mut index = 0;
        while index < 8 {
            word = word << 8 | self.text[at.wrapping_add(index) as usize % TEXT] as u64;
            index += 1;
        }
        word
    }
}

/// Whoever holds a name and the tables to match it with.
pub trait Matching {
    type Tables: Tables;
    fn name(&mut self) -> &mut Name;
    fn tables(&self) -> &Self::Tables;
    fn both(&mut self) -> (&mut Name, &Self::Tables);
}

/// Sets `name().matched` to what the tables say about the text.
///
/// An odd name has `ODD` in the place of every byte that user space escapes: its suffixes without one are matched
/// as they are, but globs, which may count bytes, are not.
#[inline(always)]
pub fn match_name<C: Matching>(context: &mut C, odd: bool) {
    let header = context.tables().header();
    let (hash, automata) = (SuffixHash::new(header.key), if odd { 0 } else { header.automata });
    let name = context.name();
    name.hash = hash;
    name.words = 0;
    name.matched = Match::NONE;
    name.domain = 0;
    let labels = name.labels;
    C::Tables::repeat::<Suffix, C>(labels, context);
    C::Tables::repeat::<Automaton, C>(automata, context);
}

/// No pattern has it.
pub const ODD: u8 = b'\\';

/// The suffix that begins at the next label from the end.
struct Suffix;

impl<C: Matching> Step<C> for Suffix {
    #[inline(always)]
    fn step(context: &mut C, index: u32) -> ControlFlow<()> {
        if context.tables().header().lengths & length_bit(index + 1) == 0 {
            return ControlFlow::Continue(());
        }
        let name = context.name();
        let label = name.labels.wrapping_sub(1).wrapping_sub(index);
        let start = name.starts[label as usize % LABELS] as u32;
        let len = name.len.wrapping_sub(start);
        let more = (len / 8).wrapping_sub(name.words);
        C::Tables::repeat::<SuffixWord, C>(more, context);
        let name = context.name();
        let hash = name.hash.finish(name.next_word(), len);
        let (name, tables) = context.both();
        let said = match find(tables, hash) {
            0 => None,
            said => tables.domain(said - 1),
        };
        if let Some(said) = said {
            name.matched.absorb(if start == 0 { &said.itself } else { &said.below });
            name.domain = hash;
        }
        ControlFlow::Continue(())
    }
}

struct SuffixWord;

impl<C: Matching> Step<C> for SuffixWord {
    #[inline(always)]
    fn step(context: &mut C, _: u32) -> ControlFlow<()> {
        let name = context.name();
        let word = name.next_word();
        name.hash.push(word);
        name.words += 1;
        ControlFlow::Continue(())
    }
}

/// Runs one automaton over the whole text.
struct Automaton;

impl<C: Matching> Step<C> for Automaton {
    #[inline(always)]
    fn step(context: &mut C, index: u32) -> ControlFlow<()> {
        let start = context.tables().header().starts[index as usize % AUTOMATA];
        let name = context.name();
        name.state = start;
        let len = name.len;
        C::Tables::repeat::<AutomatonBytes, C>(len.div_ceil(AT_ONCE), context);
        let state = context.name().state;
        let (name, tables) = context.both();
        let accepted = tables.word(state.wrapping_add(tables.header().accept));
        let said = match accepted {
            0 => None,
            index => tables.domain(index - 1),
        };
        if let Some(said) = said {
            name.matched.absorb(&said.itself);
        }
        ControlFlow::Continue(())
    }
}

/// Bytes that an automaton reads in one turn.
const AT_ONCE: u32 = 4;

struct AutomatonBytes;

impl<C: Matching> Step<C> for AutomatonBytes {
    #[inline(always)]
    fn step(context: &mut C, index: u32) -> ControlFlow<()> {
        let mut state = context.name().state;
        let mut turn = 0;
        while turn < AT_ONCE {
            let at = index * AT_ONCE + turn;
            let name = context.name();
            if at >= name.len {
                break;
            }
            let byte = name.text[at as usize % TEXT];
            let tables = context.tables();
            state = tables.word(state.wrapping_add(tables.header().classes[byte as usize].into()));
            turn += 1;
        }
        context.name().state = state;
        if state == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn hash(key: [u64; 2], bytes: &[u8]) -> u64 {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let mut hash = SuffixHash::new(key);
        let mut words = bytes.chunks_exact(8);
        for chunk in &mut words {
            hash.push(word(chunk));
        }
        hash.finish(word(words.remainder()), bytes.len() as u32)
    }

    /// The key is the bytes 0 to 15, the messages are empty, 0, 0 1, 0 1 2, ...: the beginning of the vectors by
    /// which Rust's own library tests its SipHash-1-3.
    #[test]
    fn siphash_1_3_reference() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let rows: [u64; 16] = [
            0xabac_0158_050f_c4dc,
            0xc9f4_9bf3_7d57_ca93,
            0x82cb_9b02_4dc7_d44d,
            0x8bf8_0ab8_e7dd_f7fb,
            0xcf75_5760_88d3_8328,
            0xdef9_d52f_4953_3b67,
            0xc50d_2b50_c59f_22a7,
            0xd392_7d98_9bb1_1140,
            0x3690_9511_8d29_9a8e,
            0x25a4_8eb3_6c06_3de4,
            0x79de_85ee_92ff_097f,
            0x70c1_18c1_f94d_c352,
            0x78a3_84b1_57b4_d9a2,
            0x306f_760c_1229_ffa7,
            0x605a_a111_c0f9_5d34,
            0xd320_d86d_2a51_9956,
        ];
        let message: Vec<u8> = (0..16).collect();
        for (len, want) in rows.into_iter().enumerate() {
            assert_eq!(hash(key, &message[..len]), want, "{len} bytes");
        }
    }

    #[test]
    fn keys_matter() {
        assert_ne!(hash([0, 0], b"moc"), hash([0, 1], b"moc"));
        assert_ne!(hash([0, 0], b"moc"), hash([1, 0], b"moc"));
    }

    #[test]
    fn the_least_place_wins() {
        let a = Match { deny: placed(3, 30), ..Match::NONE };
        let b = Match { deny: placed(1, 10), audit: placed(2, 20), ..Match::NONE };
        assert_eq!(a.merge(b), b);
        assert_eq!((rule(a.deny), rule(a.allow)), (30, NO_RULE));
        assert!(Match::NONE.is_none() && !a.is_none());
    }
}
