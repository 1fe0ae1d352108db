//! The one decision function.
//!
//! An address carries at most one claim per action: which rule makes it and until when. Precedence is the
//! policy's: allow beats deny beats audit beats the default. Because all three stand in the entry with their
//! own expiry, the kernel decides right while the daemon is dead and claims run out one after another.

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

/// What a map says about one address or network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entry {
    pub allow: Claim,
    pub deny: Claim,
    pub audit: Claim,
}

const _: () = assert!(size_of::<Entry>() == 48);

impl Entry {
    pub const NONE: Self = Self { allow: Claim::NONE, deny: Claim::NONE, audit: Claim::NONE };

    /// Both entries' claims together, as one entry.
    #[inline(always)]
    pub const fn merge(self, other: Self) -> Self {
        Self {
            allow: self.allow.longer(other.allow),
            deny: self.deny.longer(other.deny),
            audit: self.audit.longer(other.audit),
        }
    }

    /// When the last claim runs out: from then on the entry is garbage.
    pub const fn last_until(&self) -> BootNanos {
        self.allow.longer(self.deny).longer(self.audit).until
    }
}

/// A verdict and the rule it comes from (`NO_RULE`: the default).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    pub rule: RuleId,
}

/// Decides one connect from what the address map and the network map say about its destination.
#[inline(always)]
pub fn decide(address: Option<&Entry>, network: Option<&Entry>, now: BootNanos) -> Decision {
    // The address first: where both claim the same, a name says more in an event than a network.
    let address = address.copied().unwrap_or(Entry::NONE);
    let network = network.copied().unwrap_or(Entry::NONE);
    let by = |verdict, a: Claim, n: Claim| {
        let claim = if a.holds(now) { a } else { n };
        claim.holds(now).then_some(Decision { verdict, rule: claim.rule })
    };
    by(Verdict::Allow, address.allow, network.allow)
        .or_else(|| by(Verdict::Deny, address.deny, network.deny))
        .or_else(|| by(Verdict::Audit, address.audit, network.audit))
        .unwrap_or(Decision { verdict: Verdict::Allow, rule: NO_RULE })
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
            let address = Entry { allow: claim(s(0), 1), deny: claim(s(1), 2), audit: claim(s(2), 3) };
            let network = Entry { allow: claim(s(3), 4), deny: claim(s(4), 5), audit: claim(s(5), 6) };
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
            assert_eq!(decide(Some(&address), Some(&network), now), want, "case {n}");
        }
        assert_eq!(decide(None, None, now), Decision { verdict: Verdict::Allow, rule: NO_RULE });
    }

    #[test]
    fn merge_keeps_the_longer_claim_of_each_action() {
        let a = Entry { deny: Claim::new(1, 10), allow: Claim::new(2, 5), ..Entry::NONE };
        let b = Entry { deny: Claim::new(3, 20), audit: Claim::new(4, 7), ..Entry::NONE };
        let both = a.merge(b);
        assert_eq!((both.deny.rule, both.allow.rule, both.audit.rule), (3, 2, 4));
        assert_eq!(both.last_until(), 20);
        assert_eq!(a.merge(Entry::NONE), a);
    }
}
