//! What one DNS message makes the kernel deny, allow or audit: read before the message reaches the socket.
//!
//! The same code runs in the packet path and in the tests of user space. It agrees with the daemon's parser, or
//! says that it does not decide (`Outcome::is_late`); the daemon reads every message anyway.

mod digest;
pub(crate) mod reader;
mod records;

use crate::addr::Addr;
use crate::belief::{self, WORDS};
use crate::condition::Seats;
use crate::limits::SHARED_SECONDS;
use crate::name::{Match, Matching, NOBODY, Name, SuffixHash, Tables, match_name, rule};
use crate::quota::Account;
use crate::verdict::{BootNanos, Claim, Entry};
use records::Record;

/// Longest message that the kernel reads. A longer one is late.
pub const MESSAGE_BYTES: usize = 8192;
/// Records of the answer section: 64 addresses, 16 aliases, and the signatures beside them (RFC 4034). What comes
/// behind them is late.
pub const RECORDS: u32 = 128;
/// Addresses of one message. What comes behind them is late.
pub const ADDRESSES: usize = 128;

/// What the kernel made of one packet from port 53.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// All of it is decided: the daemon comes to the same claims.
    Decided = 0,
    /// No answer to a standard query about one name of the Internet class: it says nothing to anyone.
    NotAnAnswer = 1,
    /// It breaks the rules of the format: it says nothing to anyone.
    Malformed = 2,
    /// Longer than `MESSAGE_BYTES`. Nothing is decided.
    Long = 3,
    /// A piece of a TCP stream that is not exactly one message. Nothing is decided.
    Segmented = 4,
    /// More records, addresses or parameters than the kernel looks at. The first of them are decided.
    Crowded = 5,
    /// A name has bytes that are not printable ASCII, or dots within labels. What no glob says is decided.
    OddName = 6,
    /// More aliases than `limits::CNAME_CHAIN`. The first of them are decided.
    LongChain = 7,
    /// The aliases do not stand in the order in which they are followed: which of them lead anywhere is left
    /// to the daemon. All of them are believed.
    Disordered = 8,
    /// There are no tables: no policy has been loaded yet.
    NoTables = 9,
    /// The packet could not be read, or another one is being read on this CPU.
    Unread = 10,
}

pub const OUTCOMES: u32 = 11;

impl Outcome {
    pub const ALL: [Self; OUTCOMES as usize] = [
        Self::Decided,
        Self::NotAnAnswer,
        Self::Malformed,
        Self::Long,
        Self::Segmented,
        Self::Crowded,
        Self::OddName,
        Self::LongChain,
        Self::Disordered,
        Self::NoTables,
        Self::Unread,
    ];

    /// Whether the daemon may come to claims that the kernel did not make.
    pub const fn is_late(self) -> bool {
        Self::is_late_on_wire(self as u8)
    }

    #[inline(always)]
    pub const fn is_late_on_wire(byte: u8) -> bool {
        byte > Self::Malformed as u8
    }

    pub const fn from_wire(byte: u8) -> Option<Self> {
        if (byte as usize) < Self::ALL.len() { Some(Self::ALL[byte as usize]) } else { None }
    }
}

/// An address of the answer, with its time to live in seconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub addr: Addr,
    pub ttl: u32,
}

/// Everything that reading a message needs to remember. In the kernel one a CPU, in map memory: the verifier
/// follows every value on the stack, and none of these.
#[repr(C)]
#[derive(Debug)]
pub struct Scratch {
    /// Eight bytes more, so that words can be read across the end. The first, so that it is aligned as the whole is.
    pub message: [u8; MESSAGE_BYTES + 8],
    /// Bytes of `message` that belong to it.
    pub len: u32,
    pub name: Name,
    /// Of the words of the message so far, and how many those are. For `digest`.
    hash: SuffixHash,
    hashed: u32,
    /// Of the names so far: the first rule of each action, whichever name it names.
    claimed: Match,
    /// The domain by which the last of them is named; see `Account`.
    domain: u64,
    account: Account,
    outcome: u32,
    reader: reader::State,
    records: records::State,
    pub found_len: u32,
    pub found: [Found; ADDRESSES],
}

impl Scratch {
    pub const EMPTY: Self = Self {
        message: [0; MESSAGE_BYTES + 8],
        len: 0,
        name: Name::EMPTY,
        hash: SuffixHash::new([0; 2]),
        hashed: 0,
        claimed: Match::NONE,
        domain: 0,
        account: Account::NONE,
        outcome: 0,
        reader: reader::State::EMPTY,
        records: records::State::EMPTY,
        found_len: 0,
        found: [Found { addr: Addr::from_v4([0; 4]), ttl: 0 }; ADDRESSES],
    };

    /// After reading: an exception opens, so it takes an answer that is decided. `exceptions`: the conditional rules
    /// that allow.
    #[inline(always)]
    pub fn doubt_exceptions(&mut self, exceptions: Option<&Seats>) {
        if self.outcome != Outcome::Decided as u32 {
            self.claimed.allow = Match::NONE.allow;
            if let Some(exceptions) = exceptions {
                self.claimed.conditional.drop(exceptions);
            }
        }
    }

    /// After reading: what new addresses are charged to. `exceptions`: as above.
    #[inline(always)]
    pub fn open_account(&mut self, exceptions: Option<&Seats>) {
        self.account = Account::of(&self.claimed, self.domain, exceptions);
    }

    #[inline(always)]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// What the answer's names are claimed by.
    #[inline(always)]
    pub fn claimed(&self) -> &Match {
        &self.claimed
    }

    /// What the answer claims about an address that was found in it.
    #[inline(always)]
    pub fn write_entry(&self, found: &Found, lifetime: Lifetime, now: BootNanos, entry: &mut Entry) {
        let ttl = self.ttl(found);
        let seconds = if ttl < lifetime.floor { lifetime.floor } else { ttl };
        let seconds = if seconds > lifetime.cap { lifetime.cap } else { seconds };
        let until = now.saturating_add(seconds as u64 * 1_000_000_000);
        let claim = |by| if by == NOBODY { Claim::NONE } else { Claim::new(rule(by), until) };
        entry.allow = claim(self.claimed.allow);
        entry.deny = claim(self.claimed.deny);
        entry.audit = claim(self.claimed.audit);
        entry.conditional.until = if self.claimed.conditional.is_none() { 0 } else { until };
        entry.conditional.rules = self.claimed.conditional;
    }

    /// Until when the answer, if no rule refuses its names, makes an address shared that was found in it. By its own TTL:
    /// what lets connects pass ends early, what refuses them late.
    #[inline(always)]
    pub fn shared_until(&self, found: &Found, cap: u32, now: BootNanos) -> BootNanos {
        let ttl = self.ttl(found);
        let seconds = if ttl < SHARED_SECONDS { SHARED_SECONDS } else { ttl };
        let seconds = if seconds > cap { cap } else { seconds };
        now.saturating_add(seconds as u64 * 1_000_000_000)
    }

    /// Of the message before.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.found_len = 0;
        self.claimed = Match::NONE;
    }

    /// The number by which who asks knows the answer.
    #[inline(always)]
    pub fn id(&self) -> u16 {
        self.u16(0)
    }

    /// A hash of what is asked, by which the answer is known to belong to the question.
    #[inline(always)]
    pub fn question(&self) -> u64 {
        const { assert!(HEADER == 12) };
        let mut words = [0; WORDS];
        let mut before = self.word(1);
        let mut index = 0;
        while index < WORDS {
            let next = self.word(2 + index as u32);
            words[index] = before >> 32 | next << 32;
            before = next;
            index += 1;
        }
        belief::question(&words)
    }

    /// Cut off, so that the client may ask again.
    #[inline(always)]
    pub fn is_truncated(&self) -> bool {
        self.u16(FLAGS) & TRUNCATED != 0
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        self.message[at as usize % MESSAGE_BYTES]
    }

    #[inline(always)]
    fn u16(&self, at: u32) -> u16 {
        u16::from_be_bytes([self.byte(at), self.byte(at.wrapping_add(1))])
    }

    #[inline(always)]
    fn u32(&self, at: u32) -> u32 {
        (self.u16(at) as u32) << 16 | self.u16(at.wrapping_add(2)) as u32
    }

    /// The first reason stays, but for the one by which more may be denied than the daemon will deny.
    #[inline(always)]
    fn late(&mut self, why: Outcome) {
        if self.outcome == Outcome::Decided as u32 || why as u32 == Outcome::Disordered as u32 {
            self.outcome = why as u32;
        }
    }
}

/// How long an answer is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Seconds; the ceiling wins.
    pub floor: u32,
    pub cap: u32,
}

/// A message being read, and the tables it is matched with.
pub(crate) struct Walk<'a, T> {
    scratch: &'a mut Scratch,
    tables: &'a T,
}

impl<T: Tables> Matching for Walk<'_, T> {
    type Tables = T;

    #[inline(always)]
    fn name(&mut self) -> &mut Name {
        &mut self.scratch.name
    }

    #[inline(always)]
    fn tables(&self) -> &T {
        self.tables
    }

    #[inline(always)]
    fn both(&mut self) -> (&mut Name, &T) {
        (&mut self.scratch.name, self.tables)
    }
}

const HEADER: u32 = 12;
const FLAGS: u32 = 2;
const QUESTIONS: u32 = 4;
const ANSWERS: u32 = 6;
const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const INTERNET: u16 = 1;

/// A message that says nothing, and why.
struct Refused(Outcome);

/// Reads `scratch.message`; what it says then stands in `scratch.found` and `scratch.claimed()`.
#[inline(always)]
pub fn read<T: Tables>(scratch: &mut Scratch, tables: &T) -> Outcome {
    scratch.outcome = Outcome::Decided as u32;
    scratch.found_len = 0;
    scratch.claimed = Match::NONE;
    scratch.domain = 0;
    let mut walk = Walk { scratch, tables };
    if let Err(Refused(why)) = message(&mut walk) {
        walk.scratch.found_len = 0;
        return why;
    }
    // The index of an array of all outcomes, which the verifier need not believe to be one.
    let outcome = walk.scratch.outcome;
    Outcome::ALL[if outcome < OUTCOMES { outcome as usize } else { 0 }]
}

#[inline(always)]
fn message<T: Tables>(walk: &mut Walk<'_, T>) -> Result<(), Refused> {
    const NOT: Refused = Refused(Outcome::NotAnAnswer);
    let scratch = &mut *walk.scratch;
    let flags = scratch.u16(FLAGS);
    if scratch.len < HEADER || flags & (RESPONSE | OPCODE) != RESPONSE || scratch.u16(QUESTIONS) != 1 {
        return Err(NOT);
    }
    let answers = scratch.u16(ANSWERS) as u32;
    let len = scratch.len;
    let end = walk.read_name(HEADER, len).ok_or(NOT)?;
    let scratch = &mut *walk.scratch;
    if end + 4 > scratch.len || scratch.u16(end + 2) != INTERNET || scratch.name.len == 0 {
        return Err(NOT);
    }
    scratch.records.begin(end + 4, scratch.reader.identity);
    if answers > RECORDS {
        walk.scratch.late(Outcome::Crowded);
    }
    let most = if answers > RECORDS { RECORDS } else { answers };
    // The first turn is the question's.
    T::repeat::<Record, _>(most + 1, walk);
    if !walk.scratch.records.broken() {
        return Ok(());
    }
    if flags & TRUNCATED == 0 {
        return Err(Refused(Outcome::Malformed));
    }
    // Cut within a record. Most clients ask again over TCP, but some use what is there.
    walk.scratch.late(Outcome::Crowded);
    Ok(())
}

impl<T: Tables> Walk<'_, T> {
    /// Matches the name that was read last.
    #[inline(always)]
    fn match_read_name(&mut self) {
        let odd = self.scratch.reader.odd();
        if odd {
            self.scratch.late(Outcome::OddName);
        }
        match_name(self, odd);
        let Scratch { claimed, name, domain, .. } = &mut *self.scratch;
        claimed.absorb(&name.matched);
        if name.domain != 0 {
            *domain = name.domain;
        }
    }
}
