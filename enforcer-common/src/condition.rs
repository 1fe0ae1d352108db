//! Conditional rules: those that speak of ports, protocols, or of who connects.
//!
//! Each has a seat, one bit of every set. An address carries the set of the conditional rules that name it; what a
//! connect is (its port, its protocol, who makes it) gives a set for each thing that rules speak of, and an AND of
//! all leaves the rules that decide. What a seat means never changes while it is taken.
//!
//! All that is known about the seats is one table of rows, each a line of the cache, the same in the kernel and in
//! user space. A policy is changed by exchanging the whole table, so that a connect sees one of the two.

use crate::name::SuffixHash;
use crate::verdict::{Decision, NO_RULE, RuleId};

/// Twice as many as there may be conditional rules, so that old and new ones sit side by side while a policy changes.
pub const SEATS: u32 = 512;
const WORDS: usize = SEATS as usize / 64;

/// A set of conditional rules, and a row of the table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seats(pub [u64; WORDS]);

impl Default for Seats {
    fn default() -> Self {
        Self::NONE
    }
}

impl Seats {
    pub const NONE: Self = Self([0; WORDS]);

    pub const fn one(seat: u32) -> Self {
        let mut one = Self::NONE;
        one.0[seat as usize / 64 % WORDS] = 1 << (seat % 64);
        one
    }

    pub const fn has(&self, seat: u32) -> bool {
        self.0[seat as usize / 64 % WORDS] >> (seat % 64) & 1 == 1
    }

    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        let (mut all, mut word) = (0, 0);
        while word < WORDS {
            all |= self.0[word];
            word += 1;
        }
        all == 0
    }

    /// With those of the other.
    #[inline(always)]
    pub const fn add(&mut self, other: &Self) {
        let mut word = 0;
        while word < WORDS {
            self.0[word] |= other.0[word];
            word += 1;
        }
    }

    /// Only those that the other has as well.
    #[inline(always)]
    pub const fn keep(&mut self, other: &Self) {
        let mut word = 0;
        while word < WORDS {
            self.0[word] &= other.0[word];
            word += 1;
        }
    }

    /// Only those that one of two has as well.
    #[inline(always)]
    const fn keep_either(&mut self, a: &Self, b: &Self) {
        let mut word = 0;
        while word < WORDS {
            self.0[word] &= a.0[word] | b.0[word];
            word += 1;
        }
    }

    /// Without those of the other.
    #[inline(always)]
    pub const fn drop(&mut self, other: &Self) {
        let mut word = 0;
        while word < WORDS {
            self.0[word] &= !other.0[word];
            word += 1;
        }
    }

    /// Whether all of them are in the other.
    #[inline(always)]
    pub const fn within(&self, other: &Self) -> bool {
        let (mut rest, mut word) = (0, 0);
        while word < WORDS {
            rest |= self.0[word] & !other.0[word];
            word += 1;
        }
        rest == 0
    }

    /// The first that is in both.
    #[inline(always)]
    const fn first_in(&self, other: &Self) -> Option<u32> {
        let mut word = 0;
        while word < WORDS {
            let both = self.0[word] & other.0[word];
            if both != 0 {
                return Some(word as u32 * 64 + both.trailing_zeros());
            }
            word += 1;
        }
        None
    }

    /// Whether some are in both.
    #[inline(always)]
    pub const fn meets(&self, other: &Self) -> bool {
        let (mut both, mut word) = (0, 0);
        while word < WORDS {
            both |= self.0[word] & other.0[word];
            word += 1;
        }
        both != 0
    }

    /// A number for those that are not in the other; 0: there are none. Without a branch for each, which the verifier
    /// would have to follow.
    #[inline(always)]
    pub const fn mixed_but(&self, other: Option<&Self>) -> u64 {
        const NONE: Seats = Seats::NONE;
        let other = match other {
            Some(other) => other,
            None => &NONE,
        };
        let (mut mixed, mut any, mut word) = (0u64, 0, 0);
        while word < WORDS {
            let rest = self.0[word] & !other.0[word];
            mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(rest);
            any |= rest;
            word += 1;
        }
        // A mixture of some may be 0 as well.
        if any == 0 { 0 } else { mixed | 1 }
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0..SEATS).filter(|seat| self.has(*seat))
    }
}

/// The table of rows. One that is absent has no seat in it.
pub trait Rows {
    fn row(&self, index: u32) -> Option<&Seats>;
}

/// What the first rows are.
pub mod rows {
    /// Seats whose rules are in force.
    pub const ACTIVE: u32 = 0;
    /// Seats by action.
    pub const ALLOW: u32 = 1;
    pub const DENY: u32 = 2;
    pub const AUDIT: u32 = 3;
    /// Seats whose rules do not speak of ports, protocols, users, groups, control groups, executables.
    pub const ANY_PORT: u32 = 4;
    pub const ANY_PROTOCOL: u32 = 5;
    pub const ANY_USER: u32 = 6;
    pub const ANY_GROUP: u32 = 7;
    pub const ANY_CGROUP: u32 = 8;
    pub const ANY_EXECUTABLE: u32 = 9;
    /// Four numbers: how many buckets there are, the first one's row, and the key by which names are hashed.
    pub const HEADER: u32 = 10;
    /// Seats whose rules refuse no address that a name leads to which no rule refuses.
    pub const SHARED: u32 = 11;
    /// Ids of the rules, two a word.
    pub const IDS: u32 = 16;
    /// What the rules say, hashed, a word each. For user space.
    pub const FINGERPRINTS: u32 = 48;
    /// Classes of ports, four a word.
    pub const PORTS: u32 = 112;
    /// The first class of ports; the others follow.
    pub const CLASSES: u32 = PORTS + 65_536 / 32;
}

/// A thing that rules can speak of, as one number: its kind, and a number or the hash of a name.
pub type Key = u64;

/// What a key is about.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Protocol = 1,
    User = 2,
    Group = 3,
    /// The name of a systemd unit.
    Unit = 4,
    /// The path of a control group.
    Cgroup = 5,
    /// The path of an executable.
    Executable = 6,
}

#[inline(always)]
pub const fn key(kind: Kind, value: u64) -> Key {
    (kind as u64) << 56 | (value & ((1 << 56) - 1))
}

/// Keys of a bucket. A bucket is a row of keys and behind it a row of seats for each.
pub const BUCKET: usize = WORDS;
pub const BUCKET_ROWS: u32 = 1 + BUCKET as u32;

/// The only bucket in which this key may be, of so many.
#[inline(always)]
pub const fn bucket(key: Key, buckets: u64) -> u64 {
    let once = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let twice = (once ^ once >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    ((twice >> 32) * (buckets & 0xffff_ffff)) >> 32
}

/// The seats whose rules speak of a thing.
#[inline(always)]
pub fn spoken_of<R: Rows>(rows: &R, key: Key) -> Option<&Seats> {
    let header = rows.row(rows::HEADER)?;
    let at = (header.0[1] + bucket(key, header.0[0]) * BUCKET_ROWS as u64) as u32;
    let keys = rows.row(at)?;
    let mut lane = 0;
    while lane < BUCKET {
        if keys.0[lane] == key {
            return rows.row(at + 1 + lane as u32);
        }
        lane += 1;
    }
    None
}

/// Leaves of the rules those that do not speak of this kind of things (`rows::ANY_PORT`, ...), and those in `spoken`.
#[inline(always)]
pub fn keep_spoken<R: Rows>(named: &mut Seats, rows: &R, any: u32, spoken: Option<&Seats>) {
    match (rows.row(any), spoken) {
        (Some(any), Some(spoken)) => named.keep_either(any, spoken),
        (Some(any), None) => named.keep(any),
        (None, _) => *named = Seats::NONE,
    }
}

/// Leaves of the rules that name a destination those that are in force and cover this port and protocol.
#[inline(always)]
pub fn narrow<R: Rows>(named: &mut Seats, rows: &R, port: u16, protocol: u16) {
    match rows.row(rows::ACTIVE) {
        Some(active) => named.keep(active),
        None => *named = Seats::NONE,
    }
    if named.is_none() {
        return;
    }
    let class = match rows.row(rows::PORTS + port as u32 / 32) {
        Some(classes) => (classes.0[port as usize / 4 % WORDS] >> (16 * (port as u32 % 4))) as u16,
        None => 0,
    };
    keep_spoken(named, rows, rows::ANY_PORT, rows.row(rows::CLASSES + class as u32));
    let by_protocol = spoken_of(rows, key(Kind::Protocol, canonical(protocol) as u64));
    keep_spoken(named, rows, rows::ANY_PROTOCOL, by_protocol);
}

/// By the rules that cover a connect.
#[inline(always)]
pub fn decide<R: Rows>(named: &Seats, rows: &R) -> Decision {
    if named.is_none() {
        return Decision::DEFAULT;
    }
    Decision::of(
        first(named, rows, rows::ALLOW),
        first(named, rows, rows::DENY),
        first(named, rows, rows::AUDIT),
    )
}

/// Takes those rules out of the ones that cover a connect that refuse no shared address. `is_shared`: whether the destination
/// is one; asked for if it matters. The first of them, if some were taken out.
#[inline(always)]
pub fn spare<R: Rows>(named: &mut Seats, rows: &R, is_shared: impl FnOnce() -> bool) -> RuleId {
    match rows.row(rows::SHARED) {
        Some(shared) if named.meets(shared) && is_shared() => {
            let rule = first(named, rows, rows::SHARED);
            named.drop(shared);
            rule
        }
        _ => NO_RULE,
    }
}

/// Whether one of these rules is an exception, which may let a connect through that another rule refuses.
#[inline(always)]
pub fn may_allow<R: Rows>(named: &Seats, rows: &R) -> bool {
    rows.row(rows::ALLOW).is_some_and(|allow| named.meets(allow))
}

const TCP: u16 = 6;
const MPTCP: u16 = 262;

/// Multipath TCP is TCP to whoever writes a rule.
#[inline(always)]
const fn canonical(protocol: u16) -> u16 {
    if protocol == MPTCP { TCP } else { protocol }
}

/// Of the rules with this action (`rows::ALLOW`, ...), the first.
#[inline(always)]
fn first<R: Rows>(named: &Seats, rows: &R, action: u32) -> RuleId {
    match rows.row(action).and_then(|row| named.first_in(row)) {
        Some(seat) => id(rows, seat),
        None => NO_RULE,
    }
}

/// The rule on a seat.
#[inline(always)]
pub fn id<R: Rows>(rows: &R, seat: u32) -> RuleId {
    let Some(ids) = rows.row(rows::IDS + seat / 16) else { return NO_RULE };
    (ids.0[seat as usize / 2 % WORDS] >> (32 * (seat % 2))) as u32
}

/// The hash of a path, taken component by component, each a NUL-terminated text.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PathHash(SuffixHash);

impl PathHash {
    /// With the key in `rows::HEADER`.
    #[inline(always)]
    pub const fn new(key: [u64; 2]) -> Self {
        Self(SuffixHash::new(key))
    }

    /// The words of a component, see `component_word`; at least one zero byte ends it.
    #[inline(always)]
    pub const fn push(&mut self, word: u64) {
        self.0.push(word);
    }

    #[inline(always)]
    pub const fn finish(&self) -> u64 {
        self.0.finish(0, 0)
    }
}

/// Word `index` of a component of `len` bytes (less than 256), what stands behind them being anything.
#[inline(always)]
pub const fn component_word(text: &[u8; COMPONENT], len: u32, index: u32) -> u64 {
    let (mut word, mut byte, at) = (0, 0, index * 8);
    while byte < 8 {
        word |= (text[(at + byte) as usize % COMPONENT] as u64) << (8 * byte);
        byte += 1;
    }
    let rest = len - at;
    if rest < 8 { word & ((1 << (8 * rest)) - 1) } else { word }
}

/// How many words a component of so many bytes has.
#[inline(always)]
pub const fn component_words(len: u32) -> u32 {
    len / 8 + 1
}

/// Room for a component of a path, with its NUL.
pub const COMPONENT: usize = 256;
