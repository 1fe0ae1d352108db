//! How many new addresses a name, and a rule, may bring into the maps. Who owns a denied name decides where it leads: he
//! must neither fill the map for everybody nor have addresses of others denied by the thousand.

use crate::Seats;
use crate::name::{Match, NOBODY, rule};
use crate::verdict::BootNanos;

/// So many addresses at once, and as many again, evenly, in each period: a bucket that leaks. All that is remembered of
/// an account is when it is empty (the virtual scheduling algorithm of ITU-T I.371).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Nanoseconds in which one address leaks. 0: there is no limit.
    interval: u64,
    /// In which a full one does.
    depth: u64,
}

impl Quota {
    pub const NONE: Self = Self { interval: 0, depth: 0 };

    /// `period` in seconds.
    pub const fn new(addresses: u32, period: u32) -> Self {
        let (addresses, period) = (if addresses == 0 { 1 } else { addresses as u64 }, period as u64);
        let interval = period * 1_000_000_000 / addresses;
        Self { interval, depth: interval * addresses }
    }

    /// One address more. When the account is empty from now on; `None`: it is full.
    #[inline(always)]
    pub const fn charge(&self, empty: BootNanos, now: BootNanos) -> Option<BootNanos> {
        let from = if empty > now { empty } else { now };
        let next = from.saturating_add(self.interval);
        if next - now > self.depth { None } else { Some(next) }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    pub name: Quota,
    pub rule: Quota,
}

impl Quotas {
    pub const NONE: Self = Self { name: Quota::NONE, rule: Quota::NONE };
}

/// What an answer's new addresses are charged to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// The domain that a pattern names, with everything below it: names below a domain cost their owner nothing. What
    /// only globs name is one name for each rule.
    pub name: u64,
    /// 0: nothing is charged.
    pub rule: u64,
}

/// Apart from ids of rules.
const SEATS: u64 = 1 << 63;

impl Account {
    pub const NONE: Self = Self { name: 0, rule: 0 };

    /// Of an answer with these claims, by a domain with this hash (0: by globs). What an exception lets through is not
    /// charged: its owner is trusted. `exceptions`: the conditional rules that allow.
    #[inline(always)]
    pub fn of(claimed: &Match, domain: u64, exceptions: Option<&Seats>) -> Self {
        let by = if claimed.allow != NOBODY {
            0
        } else if claimed.deny != NOBODY {
            rule(claimed.deny).into()
        } else if claimed.audit != NOBODY {
            rule(claimed.audit).into()
        } else {
            match claimed.conditional.mixed_but(exceptions) {
                0 => 0,
                seats => SEATS | seats,
            }
        };
        Self { name: if domain != 0 { domain } else { !by }, rule: by }
    }

    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.rule == 0
    }
}

/// Whose quota is used up.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Over {
    Name = 2,
    Rule = 3,
}

impl Over {
    /// Of `AnswerRecord::unentered`.
    pub const fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            2 => Some(Self::Name),
            3 => Some(Self::Rule),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::SEATS as SEATS_OF_ALL;
    use crate::name::placed;

    const SECOND: u64 = 1_000_000_000;

    /// How many of `tries` addresses in a row, `apart` nanoseconds, are taken.
    fn taken(quota: Quota, empty: &mut u64, start: u64, apart: u64, tries: u64) -> u64 {
        let mut taken = 0;
        for n in 0..tries {
            if let Some(next) = quota.charge(*empty, start + n * apart) {
                *empty = next;
                taken += 1;
            }
        }
        taken
    }

    #[test]
    fn so_many_at_once_and_as_many_again_in_each_period() {
        let quota = Quota::new(100, 50);
        let (mut empty, start) = (0, 7 * SECOND);
        assert_eq!(taken(quota, &mut empty, start, 0, 1000), 100);
        assert_eq!(taken(quota, &mut empty, start + SECOND / 2 - 1, 0, 10), 0);
        assert_eq!(taken(quota, &mut empty, start + SECOND / 2, 0, 10), 1);
        // Through the next period one comes every half second, however many try.
        assert_eq!(taken(quota, &mut empty, start + SECOND / 2, SECOND / 100, 5001), 100);
        // Who was quiet for a period has all of it again, and not more.
        assert_eq!(taken(quota, &mut empty, start + 500 * SECOND, 0, 1000), 100);
    }

    #[test]
    fn no_quota_is_no_limit_and_the_end_of_time_no_fault() {
        assert_eq!(taken(Quota::NONE, &mut 0, SECOND, 0, 100_000), 100_000);
        assert_eq!(Quota::new(1, u32::MAX).charge(0, u64::MAX), Some(u64::MAX));
        assert!(Quota::new(0, 1).charge(0, 0).is_some());
    }

    #[test]
    fn what_is_charged_to_whom() {
        let none = Match::NONE;
        let deny = Match { deny: placed(1, 7), ..none };
        let account = |claimed: &Match, domain| Account::of(claimed, domain, Some(&Seats::one(9)));
        assert!(account(&none, 5).is_none());
        assert_eq!(account(&deny, 5), Account { name: 5, rule: 7 });
        assert_eq!(account(&deny, 0), Account { name: !7, rule: 7 });
        assert!(account(&Match { allow: placed(2, 8), ..deny }, 5).is_none());
        assert_eq!(account(&Match { audit: placed(2, 8), ..none }, 5).rule, 8);
        // Conditional ones: an exception alone is not charged.
        let seated = |seat| Match { conditional: Seats::one(seat), ..none };
        assert!(account(&seated(9), 5).is_none());
        let both = seated(9).merge(seated(500));
        assert_eq!(account(&both, 5), account(&seated(500), 5));
        assert_ne!(account(&seated(501), 5), account(&seated(500), 5));
        assert!(!Account::of(&seated(9), 5, None).is_none());
        assert!((0..SEATS_OF_ALL).all(|seat| seat == 9 || account(&seated(seat), 5).rule & SEATS != 0));
    }
}
