//! What else a refused address serves: names lead there that no rule refuses (a content delivery network, shared hosting).
//! Whoever wants one of these is refused, too, and whoever wrote the rule should know; with `shared = "allow"` it is let through
//! (`condition::spare`).

use enforcer_common::Addr;
use enforcer_common::verdict::BootNanos;

use super::compile::Compiled;
use super::dns::table::Table;
use super::name::Name;
use super::state::{State, speaking};

/// Names that are told of one address.
pub const MOST: usize = 8;
/// Bindings of one address that are looked at: whoever makes names up must not make every event of it expensive.
const LOOKED_AT: usize = 64;

impl State {
    /// Names that no rule refuses and that lead to this address, which one refuses by name: a few, the one that was seen
    /// last first.
    pub fn also_serves(&self, addr: Addr, now: BootNanos) -> Vec<String> {
        let (Some(compiled), Some(entry)) = (self.compiled(), self.planner().installed().get(&addr)) else {
            return Vec::new();
        };
        if speaking(entry, &compiled.conditions().transition, now).is_empty() {
            return Vec::new();
        }
        names(compiled, self.table(), addr, now)
    }

    /// Whether a name that no rule refuses leads there.
    pub fn is_shared(&self, addr: Addr, now: BootNanos) -> bool {
        self.compiled().is_some_and(|compiled| !names(compiled, self.table(), addr, now).is_empty())
    }

    /// Whether some rule names it that refuses no shared address.
    pub fn is_spared(&self, addr: Addr, now: BootNanos) -> bool {
        let (Some(compiled), Some(entry)) = (self.compiled(), self.planner().installed().get(&addr)) else {
            return false;
        };
        let unshared = compiled.conditions().transition.unshared();
        entry.conditional.holds(now) && entry.conditional.rules.meets(&unshared)
    }
}

/// Names that no rule refuses and that lead to this address.
pub(super) fn names(compiled: &Compiled, table: &Table, addr: Addr, now: BootNanos) -> Vec<String> {
    let alive = table.bindings(addr).filter(|binding| now < binding.until).take(LOOKED_AT);
    let innocent = alive.filter(|binding| compiled.is_innocent(&binding.chain));
    let mut names: Vec<String> = Vec::new();
    for name in innocent.filter_map(|binding| binding.chain.first()).map(Name::to_string) {
        if names.len() < MOST && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use enforcer_common::quota::Quotas;

    use super::*;
    use crate::engine::compile::Beside;
    use crate::engine::dns::table::TableConfig;
    use crate::engine::policy::{self, Lists};
    use crate::engine::state::{NeverDeny, Remembered};
    use crate::engine::tables::Budget;

    const SECOND: BootNanos = 1_000_000_000;

    fn state(policy: &str, known: &[(&[&str], u8, u64)]) -> State {
        let table = TableConfig { ttl_floor: 10, ttl_cap: 1000, capacity: 1000 };
        let mut state = State::new(table, NeverDeny::default(), Quotas::NONE, false);
        let known: Vec<Remembered> = known
            .iter()
            .map(|(names, last, seconds)| Remembered {
                chain: names.iter().map(|name| Name::from_text(name).unwrap()).collect::<Arc<[_]>>(),
                addr: addr(*last),
                until: seconds * SECOND,
            })
            .collect();
        assert_eq!(state.restore(&known, 0), known.len());
        let source = policy::Source { path: "p.toml".into(), bytes: policy.into() };
        let compiled = Compiled::new(&policy::parse(&[source]).unwrap().set, &Lists::default(), [1, 2]);
        state.set_policy(compiled.unwrap(), 0);
        state
    }

    fn addr(last: u8) -> Addr {
        Addr::from_v4([198, 51, 100, last])
    }

    const DENY: &str = "[[rule]]\nname = 'r'\naction = 'deny'\nhosts = ['.bad.example']\n";

    #[test]
    fn names_that_no_rule_refuses_and_that_are_still_believed() {
        let state = state(
            DENY,
            &[
                (&["bad.example"], 1, 100),
                (&["good.example", "cdn.example"], 1, 50),
                (&["www.example", "x.bad.example"], 1, 100),
                (&["last.example"], 1, 100),
                (&["good.example"], 2, 100),
            ],
        );
        assert_eq!(state.also_serves(addr(1), 0), ["last.example", "good.example"]);
        assert_eq!(state.also_serves(addr(1), 60 * SECOND), ["last.example"]);
        assert!(state.also_serves(addr(2), 0).is_empty(), "it is not denied");
        assert!(state.also_serves(addr(1), 100 * SECOND).is_empty(), "it is not denied any more");
    }

    #[test]
    fn a_rule_that_spares_shared_addresses_refuses_them_no_less_to_user_space() {
        let known: [(&[&str], u8, u64); 2] = [(&["bad.example"], 1, 100), (&["good.example"], 1, 50)];
        let state = state(&format!("{DENY}shared = 'allow'\n"), &known);
        assert_eq!(state.also_serves(addr(1), 0), ["good.example"]);
        assert!(state.is_spared(addr(1), 0) && state.is_shared(addr(1), 0));
        assert!(state.is_spared(addr(1), 60 * SECOND) && !state.is_shared(addr(1), 60 * SECOND));
        assert!(!state.is_spared(addr(2), 0) && !state.is_spared(addr(1), 100 * SECOND));
    }

    #[test]
    fn what_a_rule_with_conditions_or_an_audit_names_is_not_innocent() {
        let more = "[[rule]]\nname = 'c'\naction = 'deny'\nhosts = ['c.example']\nports = [25]\n\
                    [[rule]]\nname = 'a'\naction = 'audit'\nhosts = ['a.example']\n";
        let known: [(&[&str], u8, u64); 4] = [
            (&["bad.example"], 1, 100),
            (&["c.example"], 1, 100),
            (&["a.example"], 1, 100),
            (&["good.example"], 1, 100),
        ];
        let state = state(&format!("{DENY}{more}"), &known);
        assert_eq!(state.also_serves(addr(1), 0), ["good.example"]);
    }

    #[test]
    fn the_kernel_side_is_to_know_only_where_it_can() {
        let tables = |text: &str, budget| {
            let source = policy::Source { path: "p.toml".into(), bytes: text.into() };
            let set = policy::parse(&[source]).unwrap().set;
            let beside = Beside::default();
            Compiled::with_budget(&set, &Lists::default(), [1, 2], &beside, budget).unwrap()
        };
        let asks = |compiled: &Compiled| compiled.tables().header.shared == 1;
        let allow = format!("{DENY}shared = 'allow'\n");
        let glob = format!("{allow}[[rule]]\nname = 'g'\naction = 'deny'\nhosts = ['*x*']\n");
        assert!(!asks(&tables(DENY, Budget::default())));
        assert!(!asks(&tables(&format!("{DENY}shared = 'deny'\n"), Budget::default())));
        assert!(asks(&tables(&allow, Budget::default())) && asks(&tables(&glob, Budget::default())));
        let late = tables(&glob, Budget::NOTHING);
        let told = late.warnings().iter().any(|warning| warning.message.contains("lets nothing pass"));
        assert!(!asks(&late) && told, "{:?}", late.warnings());
        // It has a seat, and no claim of its own.
        let claims = tables(&allow, Budget::default()).claims(&Name::from_text("bad.example").unwrap());
        assert!(claims.deny == 0 && !claims.conditional.is_none());
    }

    #[test]
    fn the_list_is_short() {
        let names: Vec<String> = (0..100).map(|n| format!("n{n}.example")).collect();
        let chains: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
        let mut known: Vec<(&[&str], u8, u64)> = chains.iter().map(|chain| (&chain[..], 1, 100)).collect();
        known.insert(0, (&["bad.example"], 1, 100));
        let told = state(DENY, &known).also_serves(addr(1), 0);
        assert_eq!((told.len(), told[0].as_str()), (MOST, "n99.example"));
    }
}
