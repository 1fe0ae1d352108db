//! The order in which one policy takes another's place.
//!
//! What beats comes before what it beats, and goes after it: exceptions, refusals, audits; audits, refusals, exceptions. So
//! after each single step a connect that both versions refuse is refused, and one that both let pass passes. Where the
//! default lets pass, a rule that audits changes no verdict, and takes no turn of its own.

use std::collections::BTreeMap;

use enforcer_common::verdict::BootNanos;
use enforcer_common::{Addr, Claim, Entry};

use super::compile::{Compiled, Network, joined};
use super::conditions::Table;
use super::plan::{Kept, Step};
use super::policy::Action;
use super::state::State;
use super::tables::Tables;

/// What of an entry comes with a step, or stays. The seats of conditional rules always do: whether their rules are in
/// force is another table's matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Exceptions,
    /// And exceptions.
    Refusals,
    All,
}

impl Part {
    pub fn of(self, entry: Entry) -> Entry {
        let deny = if self == Self::Exceptions { Claim::NONE } else { entry.deny };
        let audit = if self == Self::All { entry.audit } else { Claim::NONE };
        Entry { deny, audit, ..entry }
    }
}

/// Where a policy is put in force. What fails is kept in mind there.
pub trait Kernel {
    fn addresses(&mut self, steps: Vec<Step>, state: &mut State);
    /// What stands in the map of networks.
    fn networks(&self) -> &BTreeMap<Network, Entry>;
    /// This and nothing else is to stand there.
    fn set_networks(&mut self, wanted: &BTreeMap<Network, Entry>);
    /// The conditional rules in force.
    fn conditions(&self) -> &Table;
    /// From here on these are. False: those before still are.
    fn enforce(&mut self, conditions: &Table) -> bool;
    /// From here on the packet path matches with these tables. False: with those before.
    fn install(&mut self, tables: &Tables) -> bool;
    /// What it entered with the tables before.
    fn retired(&self) -> Vec<(Addr, Entry)>;
    /// Of the addresses that it noted as shared only these still are.
    fn review_shared(&mut self, is_shared: impl Fn(Addr) -> bool);
}

/// How far a policy was put in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// The one before it is.
    Not,
    /// Answers are still matched with the one before it.
    Late,
    /// To be concluded, once everything that the packet path reported was taken over.
    InForce,
}

/// Puts a policy in force beside the one before it.
pub fn begin(state: &mut State, kernel: &mut impl Kernel, compiled: Compiled, now: BootNanos) -> Begun {
    let (new, conditions) = (compiled.networks().clone(), compiled.conditions().clone());
    let in_force = kernel.conditions().clone();
    let part = if takes_turns(state, &conditions.transition) { Part::Refusals } else { Part::Exceptions };
    let kept = Kept { seats: in_force.active(), part };
    let give = |state: &mut State, kernel: &mut _, part| {
        let steps = state.prepare(&compiled, kept, part, now);
        Kernel::addresses(kernel, steps, state);
        networks(kernel, Part::All, &new, part);
    };
    give(state, kernel, Part::Exceptions);
    if state.default_deny() {
        let but_audits = conditions.transition.with_audits(in_force.by_action(Action::Audit));
        if !kernel.enforce(&but_audits) {
            return Begun::Not;
        }
        give(state, kernel, Part::Refusals);
    }
    if !kernel.enforce(&conditions.transition) {
        return Begun::Not;
    }
    networks(kernel, Part::All, &new, Part::All);
    let installed = kernel.install(compiled.tables());
    let steps = state.set_policy(compiled, now);
    kernel.addresses(steps, state);
    networks(kernel, kept.part, &new, Part::All);
    if installed {
        return Begun::InForce;
    }
    // `conclude` does not come.
    kernel.review_shared(|addr| state.is_shared(addr, now));
    Begun::Late
}

/// Before what the packet path entered by the policy before is discarded.
pub fn hold(state: &mut State, kernel: &mut impl Kernel, now: BootNanos) {
    let steps = state.hold(kernel.retired(), now);
    kernel.addresses(steps, state);
}

/// The policy before this one goes. False: it could not, and has to be tried again.
pub fn conclude(state: &mut State, kernel: &mut impl Kernel, now: BootNanos) -> bool {
    let Some(compiled) = state.compiled() else { return true };
    let (new, conditions) = (compiled.networks().clone(), compiled.conditions().clone());
    if takes_turns(state, kernel.conditions()) {
        let audits = conditions.table.by_action(Action::Audit);
        let unshared = conditions.table.unshared();
        if !kernel.enforce(&kernel.conditions().with_audits(audits).with_unshared(unshared)) {
            return false;
        }
        // Now that the answers that may make an address shared were read. One that comes in this moment counts as shared only
        // when it comes again.
        kernel.review_shared(|addr| state.is_shared(addr, now));
        let steps = state.relent(now);
        kernel.addresses(steps, state);
        networks(kernel, Part::Exceptions, &new, Part::All);
    }
    if !kernel.enforce(&conditions.table) {
        return false;
    }
    let steps = state.conclude(now);
    kernel.addresses(steps, state);
    kernel.set_networks(&new);
    true
}

/// Whether refusals stay until audits are gone, because these let pass what would be refused; and until it is known what is
/// shared by the new rules, because rules before these refused nothing there that new ones may spare.
fn takes_turns(state: &State, conditions: &Table) -> bool {
    state.default_deny() || !conditions.unshared().is_none()
}

fn networks(kernel: &mut impl Kernel, stay: Part, new: &BTreeMap<Network, Entry>, come: Part) {
    if kernel.networks() != new {
        let wanted = joined(kernel.networks(), stay, new, come);
        kernel.set_networks(&wanted);
    }
}
