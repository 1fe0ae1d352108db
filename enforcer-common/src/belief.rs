//! Which answers are believed: those to a question that was seen leaving, once, within a while, and from whom it was
//! asked. Everybody on the way can write a packet that comes from port 53.

use crate::addr::Addr;
use crate::answer::reader::canonical;
use crate::verdict::BootNanos;

/// So long an answer is waited for.
pub const PATIENCE: BootNanos = 30_000_000_000;

/// Questions that may be open at once, in buckets of `WAYS`.
pub const BUCKETS: u32 = 16_384;
pub const WAYS: usize = 4;

/// Why an answer is not believed.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// The socket did not ask this server this question under this number.
    Unasked = 0,
    /// It did, too long ago.
    Late = 1,
    /// It did, and was answered as often as it asked.
    Replayed = 2,
    /// The connection was not opened from here.
    NotOpened = 3,
    /// The socket is in a network namespace that belongs to another user namespace than the host's: whoever made that
    /// has every address and every server in it.
    Foreign = 4,
    /// A user asked a server that is not one of the host's.
    Untrusted = 5,
}

pub const DOUBTS: u32 = 6;

impl Doubt {
    pub const ALL: [Self; DOUBTS as usize] =
        [Self::Unasked, Self::Late, Self::Replayed, Self::NotOpened, Self::Foreign, Self::Untrusted];
}

/// What tells an answer to one question from the answers to all others.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub cookie: u64,
    /// By `question`.
    pub hash: u64,
    pub server: [u64; 2],
    pub id: u64,
}

/// A hash and one more word. It need not be strong: who finds a collision finds a place in a bucket, or another question
/// that he has to be asked first. Multiplied twice, for the first carries differences upwards only.
#[inline(always)]
pub const fn mix(hash: u64, word: u64) -> u64 {
    let once = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let twice = (once ^ once >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    twice ^ twice >> 32
}

impl Question {
    #[inline(always)]
    pub fn new(cookie: u64, hash: u64, server: Addr, id: u16) -> Self {
        let server = u128::from_ne_bytes(server.octets());
        Self { cookie, hash, server: [server as u64, (server >> 64) as u64], id: id.into() }
    }

    /// Without a branch for each field: the verifier goes every way.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let ([a, b], [c, d]) = (self.server, other.server);
        (a ^ c) | (b ^ d) | (self.hash ^ other.hash) | (self.cookie ^ other.cookie) | (self.id ^ other.id)
            == 0
    }

    #[inline(always)]
    pub const fn bucket(&self) -> u32 {
        (mix(mix(self.cookie, self.id), self.hash) >> 32) as u32 % BUCKETS
    }
}

/// Words that are looked at to know a question by: 64 bytes of its name, and what stands behind.
pub const WORDS: usize = 9;

/// A hash of the question that begins a message's first section, as its bytes stand there: of the name in lower case, as
/// far as it is looked at, and the type if the name ends there. Queries are not compressed, and neither are answers there.
#[inline(always)]
pub const fn question(words: &[u64; WORDS]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut hash = 0;
    let mut index = 0;
    while index < WORDS - 1 {
        let word = words[index];
        let zeros = word.wrapping_sub(ONES) & !word & (ONES << 7);
        if zeros != 0 {
            // The bit 0x80 of the first byte that is 0, which is the root: bytes before it, and two behind it.
            let end = zeros & zeros.wrapping_neg();
            let name = word & ((end >> 7) - 1);
            // The product's upper byte is the byte's index.
            let bits = ((end >> 7).wrapping_mul(0x0001_0203_0405_0607) >> 56) * 8;
            let behind = word >> bits >> 8 | words[index + 1] << (56 - bits);
            return mix(mix(hash, canonical(name).0), behind & 0xffff);
        }
        hash = mix(hash, canonical(word).0);
        index += 1;
    }
    hash
}

/// Who sent a question.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    /// By `process`.
    pub process: u64,
    /// Number of the control group.
    pub cgroup: u64,
}

impl Sender {
    /// Not known.
    pub const NONE: Self = Self { process: 0, cgroup: 0 };

    /// What tells a process from all others since the machine started: `started` is CLOCK_BOOTTIME. In one word, so that
    /// it costs as little as that wherever it is remembered.
    #[inline(always)]
    pub const fn process(pid: u32, started: BootNanos) -> u64 {
        mix(mix(0, pid as u64), started)
    }
}

/// A question that was asked.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub question: Question,
    /// The first of them, of those that are open.
    pub sender: Sender,
    /// When last.
    pub time: BootNanos,
    /// How often without an answer. 0: the place is free.
    pub open: u64,
}

pub type Bucket = [Asked; WAYS];

impl Asked {
    #[inline(always)]
    pub const fn is_over(&self, now: BootNanos) -> bool {
        now.wrapping_sub(self.time) > PATIENCE
    }

    /// How ready the place is to be given to another question: a free one before the oldest.
    #[inline(always)]
    pub const fn idle(&self, now: BootNanos) -> BootNanos {
        if self.open == 0 { BootNanos::MAX } else { now.wrapping_sub(self.time) }
    }
}

/// Users that are services of the system (systemd's `SYSTEM_UID_MAX`, and its dynamic users), root among them, and
/// `nobody`: nobody else can become one of them, and who is one does not ask on behalf of a user alone.
#[inline(always)]
pub const fn is_system(uid: u32) -> bool {
    const DYNAMIC: u32 = 61_184;
    const NOBODY: u32 = 65_534;
    uid < 1000 || (uid >= DYNAMIC && uid <= NOBODY)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn system_users_rows() {
        let rows = [(0, true), (101, true), (999, true), (1000, false), (61_183, false), (61_184, true)];
        let rows =
            rows.into_iter().chain([(65_534, true), (65_535, false), (100_000, false), (u32::MAX, false)]);
        for (uid, want) in rows {
            assert_eq!(is_system(uid), want, "{uid}");
        }
    }

    fn hash(name: &[u8], kind: u16, rest: u8) -> u64 {
        let mut bytes = std::vec::Vec::from(name);
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.resize(8 * WORDS, rest);
        let words: std::vec::Vec<u64> = bytes
            .chunks_exact(8)
            .take(WORDS)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        question(&words.try_into().unwrap())
    }

    #[test]
    fn a_question_is_its_name_and_type_and_nothing_behind() {
        let name: std::vec::Vec<u8> = b"\x07AbCdEfG".iter().cycle().take(70).copied().collect();
        for length in 1..70 {
            let (name, lower) = (&name[..length], name[..length].to_ascii_lowercase());
            let this = hash(name, 1, 0);
            assert_eq!(this, hash(&lower, 1, 0xff), "{length}: letters, and what is behind");
            if length < 62 {
                assert_ne!(this, hash(name, 28, 0), "{length}: the type");
            }
            for at in 0..length.min(64) {
                let mut other = lower.clone();
                other[at] ^= 1;
                assert_ne!(this, hash(&other, 1, 0), "{length}: byte {at}");
            }
        }
    }

    #[test]
    fn a_free_place_goes_first_then_the_oldest() {
        let server = Addr::from_v4([192, 0, 2, 53]);
        let question = Question::new(1, 2, server, 3);
        let asked = |time, open| Asked { question, sender: Sender::NONE, time, open };
        let now = 2 * PATIENCE;
        assert!(asked(now, 0).idle(now) > asked(0, 1).idle(now));
        assert!(asked(now - 2, 1).idle(now) > asked(now - 1, 9).idle(now));
        assert!(!asked(now - PATIENCE, 1).is_over(now));
        assert!(asked(now - PATIENCE - 1, 1).is_over(now));
    }
}
