//! The one decision function.
//!
//! An address carries at most one claim per action: which rule makes it and until when, and the set of the
//! conditional rules that name it. Precedence is the policy's: allow beats deny beats audit beats the default. Because
//! all claims stand in the entry with their own expiry, the kernel decides right while the daemon is dead and they
//! run out one after another. The conditional rules of an entry share one expiry, the longest: the daemon takes
//! each away when its own comes.

use crate::condition::Seats;

/// Boot-time clock (CLOCK_BOOTTIME), nanoseconds: runs on through suspend, the same in kernel and user space.
pub type BootNanos = u64;

/// A claim with this expiry never runs out (rules that name networks).
pub const FOREVER: BootNanos = u64::MAX;

/// Identifies a rule: a hash of its name, so that it means the same after a reload, a restart and an upgrade.
/// The parser refuses two rules whose names give the same id. 0 is no rule.
pub type RuleId = u32;
pub const NO_RULE: RuleId = 0;
/// The rule of the daemon's self-test: refused like any other, neither counted nor reported.
pub const CANARY_RULE: RuleId = RuleId::MAX;

/// What to do with a connect.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Allow = 0,
    Deny = 1,
    /// Let through, but reported as would-deny.
    Audit = 2,
}

impl Verdict {
    pub const fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Allow),
            1 => Some(Self::Deny),
            2 => Some(Self::Audit),
            _ => None,
        }
    }
}

/// One rule's claim on an address: it holds while `now < until`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Claim {
    pub until: BootNanos,
    pub rule: RuleId,
    pub reserved: u32,
}

impl Claim {
    /// Holds at no time.
    pub const NONE: Self = Self { until: 0, rule: NO_RULE, reserved: 0 };

    pub const fn new(rule: RuleId, until: BootNanos) -> Self {
        Self { until, rule, reserved: 0 }
    }

    #[inline(always)]
    pub const fn holds(&self, now: BootNanos) -> bool {
        now < self.until
    }

    /// The claim that lives longer; the first one on a tie.
    #[inline(always)]
    pub const fn longer(self, other: Self) -> Self {
        if other.until > self.until { other } else { self }
    }
}

/// The conditional rules that name a destination: they may decide while `now < until`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Conditional {
    pub until: BootNanos,
    pub rules: Seats,
}

impl Conditional {
    pub const NONE: Self = Self { until: 0, rules: Seats::NONE };

    pub const fn new(rules: Seats, until: BootNanos) -> Self {
        if rules.is_none() { Self::NONE } else { Self { until, rules } }
    }

    #[inline(always)]
    pub const fn holds(&self, now: BootNanos) -> bool {
        now < self.until
    }

    const fn merge(mut self, other: &Self) -> Self {
        self.rules.add(&other.rules);
        if other.until > self.until {
            self.until = other.until;
        }
        self
    }
}

/// What a map says about one address or network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entry {
    pub allow: Claim,
    pub deny: Claim,
    pub audit: Claim,
    pub conditional: Conditional,
}

const _: () = assert!(size_of::<Entry>() == 120);

impl Entry {
    pub const NONE: Self =
        Self { allow: Claim::NONE, deny: Claim::NONE, audit: Claim::NONE, conditional: Conditional::NONE };

    /// Both entries' claims together, as one entry.
    pub const fn merge(self, other: Self) -> Self {
        Self {
            allow: self.allow.longer(other.allow),
            deny: self.deny.longer(other.deny),
            audit: self.audit.longer(other.audit),
            conditional: self.conditional.merge(&other.conditional),
        }
    }

    /// When the last claim runs out: from then on the entry is garbage.
    pub const fn last_until(&self) -> BootNanos {
        let until = self.allow.longer(self.deny).longer(self.audit).until;
        if self.conditional.until > until { self.conditional.until } else { until }
    }
}

/// A verdict and the rule it comes from (`NO_RULE`: the default).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    pub rule: RuleId,
}

impl Decision {
    pub const DEFAULT: Self = Self { verdict: Verdict::Allow, rule: NO_RULE };

    /// Of two, that of the action that beats the other's; on a tie this one.
    #[inline(always)]
    pub const fn stronger(self, other: Self) -> Self {
        if other.rank() < self.rank() { other } else { self }
    }

    /// Allow beats deny beats audit beats the default. The daemon's self-test is beaten by nothing that a policy says.
    #[inline(always)]
    const fn rank(&self) -> u32 {
        if self.rule == CANARY_RULE {
            return 0;
        }
        match self.verdict {
            Verdict::Allow if self.rule == NO_RULE => 3,
            Verdict::Allow => 0,
            Verdict::Deny => 1,
            Verdict::Audit => 2,
        }
    }
}

/// What all maps together say about a destination, conditional rules apart: a rule for each action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    allow: RuleId,
    deny: RuleId,
    audit: RuleId,
}

impl Said {
    pub const NOTHING: Self = Self { allow: NO_RULE, deny: NO_RULE, audit: NO_RULE };

    /// Takes in what one map says. Who is heard first names the rule: addresses before networks, since a name says
    /// more in an event.
    #[inline(always)]
    pub const fn hear(&mut self, entry: &Entry, now: BootNanos) {
        if self.allow == NO_RULE && entry.allow.holds(now) {
            self.allow = entry.allow.rule;
        }
        if self.deny == NO_RULE && entry.deny.holds(now) {
            self.deny = entry.deny.rule;
        }
        if self.audit == NO_RULE && entry.audit.holds(now) {
            self.audit = entry.audit.rule;
        }
    }

    /// Decides one connect, as far as its destination does.
    #[inline(always)]
    pub const fn decide(&self) -> Decision {
        Decision::of(self.allow, self.deny, self.audit)
    }
}

impl Decision {
    /// By the rule of each action that covers a connect.
    #[inline(always)]
    pub const fn of(allow: RuleId, deny: RuleId, audit: RuleId) -> Self {
        if deny == CANARY_RULE {
            Self { verdict: Verdict::Deny, rule: deny }
        } else if allow != NO_RULE {
            Self { verdict: Verdict::Allow, rule: allow }
        } else if deny != NO_RULE {
            Self { verdict: Verdict::Deny, rule: deny }
        } else if audit != NO_RULE {
            Self { verdict: Verdict::Audit, rule: audit }
        } else {
            Self::DEFAULT
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of {absent, expired, live} claims in both maps, against the sentence
    /// "the live claim of the strongest action wins, the address's before the network's".
    #[test]
    fn truth_table() {
        let now = 100;
        let claim = |state: u32, rule| match state {
            0 => Claim::NONE,
            1 => Claim::new(rule, now), // `until` itself is too late
            _ => Claim::new(rule, now + 1),
        };
        for n in 0..3u32.pow(6) {
            let s = |i: u32| n / 3u32.pow(i) % 3;
            let entry = |at: u32, rule: u32| Entry {
                allow: claim(s(at), rule),
                deny: claim(s(at + 1), rule + 1),
                audit: claim(s(at + 2), rule + 2),
                ..Entry::NONE
            };
            let mut said = Said::NOTHING;
            said.hear(&entry(0, 1), now);
            said.hear(&entry(3, 4), now);
            let order = [
                (s(0), Verdict::Allow, 1),
                (s(3), Verdict::Allow, 4),
                (s(1), Verdict::Deny, 2),
                (s(4), Verdict::Deny, 5),
                (s(2), Verdict::Audit, 3),
                (s(5), Verdict::Audit, 6),
            ];
            let want = order
                .iter()
                .find(|(state, _, _)| *state == 2)
                .map_or(Decision { verdict: Verdict::Allow, rule: NO_RULE }, |&(_, verdict, rule)| {
                    Decision { verdict, rule }
                });
            assert_eq!(said.decide(), want, "case {n}");
        }
        assert_eq!(Said::NOTHING.decide(), Decision { verdict: Verdict::Allow, rule: NO_RULE });
    }

    /// Whoever allows everything (0.0.0.0/0) must not make the self-test say that nothing is refused.
    #[test]
    fn no_rule_beats_the_canary() {
        let denied = Decision { verdict: Verdict::Deny, rule: CANARY_RULE };
        let (canary, everything) = (Claim::new(CANARY_RULE, 9), Claim::new(1, FOREVER));
        let mut said = Said::NOTHING;
        said.hear(&Entry { deny: canary, ..Entry::NONE }, 0);
        said.hear(&Entry { allow: everything, ..Entry::NONE }, 0);
        assert_eq!(said.decide(), denied);
        assert_eq!(denied.stronger(Decision::of(1, NO_RULE, NO_RULE)), denied);
        // And what it is allowed to reach no other rule denies.
        let mut said = Said::NOTHING;
        said.hear(&Entry { allow: canary, ..Entry::NONE }, 0);
        said.hear(&Entry { allow: everything, deny: everything, ..Entry::NONE }, 0);
        let allowed = Decision { verdict: Verdict::Allow, rule: CANARY_RULE };
        assert_eq!(said.decide(), allowed);
        assert_eq!(allowed.stronger(Decision::of(NO_RULE, 1, NO_RULE)), allowed);
    }

    #[test]
    fn the_stronger_decision_wins() {
        let all = [
            Decision::of(1, 2, 3),
            Decision::of(NO_RULE, 2, 3),
            Decision::of(NO_RULE, NO_RULE, 3),
            Decision::of(NO_RULE, NO_RULE, NO_RULE),
        ];
        for (at, one) in all.iter().enumerate() {
            for (than, other) in all.iter().enumerate() {
                assert_eq!(one.stronger(*other), if than < at { *other } else { *one }, "{one:?} {other:?}");
            }
        }
        assert_eq!(Decision::of(1, 0, 0).stronger(Decision::of(9, 0, 0)).rule, 1);
    }

    #[test]
    fn merge_keeps_the_longer_claim_of_each_action() {
        let a = Entry { deny: Claim::new(1, 10), allow: Claim::new(2, 5), ..Entry::NONE };
        let b = Entry { deny: Claim::new(3, 20), audit: Claim::new(4, 7), ..Entry::NONE };
        let both = a.merge(b);
        assert_eq!((both.deny.rule, both.allow.rule, both.audit.rule), (3, 2, 4));
        assert_eq!(both.last_until(), 20);
        assert_eq!(a.merge(Entry::NONE), a);
        let c = Entry { conditional: Conditional::new(Seats::one(3), 30), ..Entry::NONE };
        let d = Entry { conditional: Conditional::new(Seats::one(511), 25), ..Entry::NONE };
        let both = a.merge(c).merge(d);
        assert_eq!((both.last_until(), both.conditional.rules.iter().count()), (30, 2));
        assert!(both.conditional.rules.has(3) && both.conditional.rules.has(511));
    }
}
