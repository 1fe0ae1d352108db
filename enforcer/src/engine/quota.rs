//! What answers bring that the kernel left to the daemon. It comes too late to withhold them: over the quota their new
//! addresses stay open, which is counted, because the map must not be filled for everybody else.

use std::collections::HashMap;

use enforcer_common::limits::ACCOUNTS;
use enforcer_common::quota::{Account, Over, Quotas};
use enforcer_common::verdict::BootNanos;

#[derive(Debug)]
pub(super) struct Accounts {
    quotas: Quotas,
    /// By name or rule: when the account is empty.
    empty: HashMap<u64, BootNanos>,
}

impl Accounts {
    pub(super) fn new(quotas: Quotas) -> Self {
        Self { quotas, empty: HashMap::new() }
    }

    /// One address more. `Err`: there is no room for it, and nothing is charged.
    pub(super) fn charge(&mut self, account: &Account, now: BootNanos) -> Result<(), Over> {
        if account.is_none() {
            return Ok(());
        }
        if self.empty.len() >= ACCOUNTS as usize {
            self.empty.retain(|_, empty| now < *empty);
        }
        let empty = |key: &u64| self.empty.get(key).copied().unwrap_or(0);
        let name = self.quotas.name.charge(empty(&account.name), now).ok_or(Over::Name)?;
        let rule = self.quotas.rule.charge(empty(&account.rule), now).ok_or(Over::Rule)?;
        self.empty.insert(account.rule, rule);
        // Patterns of the policy bound how many there can be; where they are very many, only rules are counted on.
        if self.empty.len() < 2 * ACCOUNTS as usize || self.empty.contains_key(&account.name) {
            self.empty.insert(account.name, name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use enforcer_common::quota::Quota;

    use super::*;

    #[test]
    fn names_and_rules_are_charged_both_and_remembered_within_bounds() {
        let quotas = Quotas { name: Quota::new(2, 100), rule: Quota::new(5, 100) };
        let mut accounts = Accounts::new(quotas);
        let account = |name| Account { name, rule: 1 };
        let charges = [(10, Ok(())), (10, Ok(())), (10, Err(Over::Name)), (11, Ok(())), (11, Ok(()))];
        for (at, (name, want)) in charges.into_iter().enumerate() {
            assert_eq!(accounts.charge(&account(name), 0), want, "{at}");
        }
        assert_eq!(accounts.charge(&account(12), 0), Ok(()));
        assert_eq!(accounts.charge(&account(13), 0), Err(Over::Rule));
        assert_eq!(accounts.charge(&Account::NONE, 0), Ok(()));
        // What was refused was not charged.
        assert_eq!(accounts.charge(&account(13), 20_000_000_000), Ok(()));
        let mut accounts = Accounts::new(Quotas { rule: Quota::NONE, ..quotas });
        (2..3 * u64::from(ACCOUNTS)).for_each(|name| accounts.charge(&account(name), 5).unwrap());
        assert!(accounts.empty.len() <= 2 * ACCOUNTS as usize + 1, "{}", accounts.empty.len());
    }
}
