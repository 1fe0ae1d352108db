//! Per-CPU counters, indexed by `Counter`, then by `Outcome`, then by `Doubt`, then by `Layer`. Writers: every program; reader:
//! the daemon (sums over CPUs).

use crate::answer::OUTCOMES;
use crate::belief::DOUBTS;
use crate::event::Layer;

#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Connects (and first datagrams, and Fast Opens) decided.
    Connects = 0,
    Denied = 1,
    Audited = 2,
    /// Connect reports that found the ring full.
    LostEvents = 3,
    /// DNS answers that found the ring full.
    LostAnswers = 4,
    /// The socket could not be read; its type and source are unknown. The verdict stands.
    FaultSocket = 5,
    /// The destination could not be read: the connect passed (fail-open).
    FaultAddress = 6,
    /// The process could not be read; the report lacks it. The verdict stands.
    FaultTask = 7,
    /// A packet from port 53 that could not be copied.
    FaultPacket = 8,
    /// DNS packets copied to the ring.
    Answers = 9,
    /// DNS messages whose names a rule names; their addresses were entered before delivery.
    AnswersMatched = 10,
    /// Answers with a denied name that were not delivered, because their addresses could not be entered.
    AnswersDropped = 11,
    /// Addresses that found a new place in ANSWERED.
    AnsweredEntered = 12,
    /// Connects that are not reported, because the configuration ignores them.
    Ignored = 13,
    /// Connects that were counted as repeats of one that was reported.
    Repeated = 14,
    /// Connects that were reported one by one, because there was no room to count their repeats.
    Unaggregated = 15,
    /// DNS messages that said what had just been said, and were not copied again.
    AnswersRepeated = 16,
    /// Answers with a denied name that were not believed, and so not delivered.
    AnswersWithheld = 17,
    /// Packets that left for a denied address although no hook had refused them, and were refused.
    PacketsRefused = 18,
    /// Answers with a new address that their name's quota had no room for. Not delivered, if they would be denied.
    AnswersOverName = 19,
    /// The same of their rule's quota.
    AnswersOverRule = 20,
    /// Connects that a rule would have refused, or audited, if their destination were not shared.
    SharedPassed = 21,
}

/// The counters of what became of the answers follow the others.
pub const OUTCOMES_AT: u32 = 22;
/// And after them those of why answers were not believed.
pub const DOUBTS_AT: u32 = OUTCOMES_AT + OUTCOMES;
/// And after them how often each layer refused a canary, which is counted nowhere else.
pub const CAUGHT_AT: u32 = DOUBTS_AT + DOUBTS;
pub const COUNTERS: u32 = CAUGHT_AT + Layer::ALL.len() as u32;
