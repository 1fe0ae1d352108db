//! Carries out the engine's steps on the kernel's maps, and remembers what did not work.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use enforcer_common::answer::Outcome;
use enforcer_common::belief::Doubt;
use enforcer_common::counter::Counter;
use enforcer_common::event::Layer;
use enforcer_common::verdict::{BootNanos, Conditional};
use enforcer_common::{Addr, Entry, Seats};
use ipnetwork::IpNetwork;
use tracing::{error, warn};

use crate::engine::compile::{Change, Network, changes};
use crate::engine::conditions::Table;
use crate::engine::plan::Step;
use crate::engine::record::LayerName;
use crate::engine::reload;
use crate::engine::state::{NeverDeny, State};
use crate::engine::tables::Tables;
use crate::sys::bpf::{Answers, BpfError, Kernel};
use crate::sys::log::RateLimit;
use crate::sys::{canary, clock};

static FAILURES: RateLimit = RateLimit::new(Duration::from_secs(10));

pub(super) struct Installer {
    kernel: Kernel,
    /// What stands in the kernel's network map.
    networks: BTreeMap<Network, Entry>,
    /// Addresses that could not be denied.
    pub(super) failed_inserts: u64,
    pub(super) adopted: usize,
    /// Changes of the address map, so far.
    pub(super) changes: u64,
    /// Addresses that had been entered when answers began to be entered into the other map.
    entered_before: u64,
}

impl Installer {
    pub(super) fn new(kernel: Kernel) -> Result<Self, BpfError> {
        let networks = kernel.networks()?.into_iter().collect();
        Ok(Self { kernel, networks, failed_inserts: 0, adopted: 0, changes: 0, entered_before: 0 })
    }

    /// What an earlier daemon left in the address map, and what the packet path entered meanwhile, which is put
    /// there too. Seats that are not taken (it died while it gave them out) mean nobody, and are taken out.
    pub(super) fn adopted(&mut self) -> Result<Vec<(Addr, Entry)>, BpfError> {
        let taken = self.kernel.conditions.in_force().active();
        let known: HashMap<Addr, Entry> = self.kernel.addresses()?.into_iter().collect();
        let mut all = known.clone();
        for (addr, entry) in self.kernel.answers.entered()? {
            let entry = all.get(&addr).copied().unwrap_or(Entry::NONE).merge(entry);
            all.insert(addr, entry);
        }
        for (addr, entry) in &mut all {
            *entry = seated(*entry, &taken);
            if known.get(addr) != Some(entry) {
                self.kernel.put_address(*addr, *entry)?;
            }
        }
        for (network, entry) in &mut self.networks {
            let wanted = seated(*entry, &taken);
            if *entry != wanted {
                self.kernel.put_network(*network, wanted)?;
                *entry = wanted;
            }
        }
        self.kernel.answers.discard_retired()?;
        self.adopted = all.len();
        Ok(all.into_iter().collect())
    }

    /// Addresses that are shared now. None, where no rule asks.
    pub(super) fn shared(&self, now: BootNanos) -> HashMap<Addr, BootNanos> {
        if self.kernel.conditions.in_force().unshared().is_none() {
            return HashMap::new();
        }
        let all = self.kernel.answers.shared().unwrap_or_else(|error| {
            complain("which addresses are shared cannot be read", &error);
            Vec::new()
        });
        all.into_iter().filter(|(_, until)| now < *until).collect()
    }

    /// From here on answers are entered into the other map, as after `install`.
    pub(super) fn rotate(&mut self) -> bool {
        let before = self.count(Counter::AnsweredEntered);
        let rotated = self.kernel.answers.rotate().map(|()| self.entered_before = before);
        rotated.map_err(|error| complain("what was answered piles up", &error)).is_ok()
    }

    /// Addresses in the map that answers are entered into now.
    pub(super) fn entered(&self) -> u64 {
        self.count(Counter::AnsweredEntered).saturating_sub(self.entered_before)
    }

    /// False: some of it is still there.
    pub(super) fn discard_retired(&mut self) -> bool {
        let discarded = self.kernel.answers.discard_retired();
        discarded
            .map_err(|error| {
                complain("what the rules before these denied stays denied until it runs out", &error)
            })
            .is_ok()
    }

    /// Addresses and networks that no answer may deny; and who is believed: the host's servers, and others.
    pub(super) fn protect(&mut self, never: &NeverDeny, servers: &HashSet<Addr>, trusted: &[IpNetwork]) {
        let answers = &mut self.kernel.answers;
        if let Err(error) =
            answers.set_never_deny(&never.networks).and_then(|()| answers.set_host(&never.host))
        {
            complain("an answer may deny an address of this host", &error);
        }
        let host = servers.iter().map(|addr| Network { addr: addr.octets(), prefix: 128 });
        let trusted = trusted.iter().copied().map(Network::from);
        let all: HashSet<Network> = host.chain(trusted).collect();
        if let Err(error) = self.kernel.answers.set_trusted(&all.into_iter().collect::<Vec<_>>()) {
            complain("answers of a server that this host uses may not be believed", &error);
        }
    }

    pub(super) fn count(&self, counter: Counter) -> u64 {
        told(self.kernel.count(counter))
    }

    /// Canaries that each layer refused.
    pub(super) fn caught(&self) -> BTreeMap<LayerName, u64> {
        Layer::ALL.map(|layer| (layer.into(), told(self.kernel.caught(layer)))).into()
    }

    pub(super) fn outcome(&self, outcome: Outcome) -> u64 {
        told(self.kernel.outcome(outcome))
    }

    pub(super) fn doubt(&self, doubt: Doubt) -> u64 {
        told(self.kernel.doubt(doubt))
    }

    pub(super) fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    pub(super) fn release(self) -> Result<(), BpfError> {
        canary::release_kernel(self.kernel, clock::boot_ns())
    }
}

impl reload::Kernel for Installer {
    fn addresses(&mut self, steps: Vec<Step>, state: &mut State) {
        for step in steps {
            self.changes += 1;
            match step {
                Step::Put(addr, entry) => {
                    if let Err(error) = self.kernel.put_address(addr, entry) {
                        self.failed_inserts += 1;
                        state.failed(addr);
                        complain("an address is NOT denied", &error);
                    }
                }
                Step::Remove(addr) => {
                    if let Err(error) = self.kernel.remove_address(addr) {
                        complain("an address stays denied until its entry runs out", &error);
                    }
                }
            }
        }
    }

    fn networks(&self) -> &BTreeMap<Network, Entry> {
        &self.networks
    }

    fn set_networks(&mut self, wanted: &BTreeMap<Network, Entry>) {
        for change in changes(&self.networks, wanted) {
            match change {
                Change::Put(network, entry) => match self.kernel.put_network(network, entry) {
                    Ok(()) => drop(self.networks.insert(network, entry)),
                    Err(error) => {
                        self.failed_inserts += 1;
                        complain("a network is NOT denied", &error);
                    }
                },
                Change::Remove(network) => match self.kernel.remove_network(network) {
                    Ok(()) => drop(self.networks.remove(&network)),
                    Err(error) => complain("a network stays denied", &error),
                },
            }
        }
    }

    fn conditions(&self) -> &Table {
        self.kernel.conditions.in_force()
    }

    fn enforce(&mut self, conditions: &Table) -> bool {
        let enforced = self.kernel.conditions.enforce(conditions);
        enforced
            .map_err(|error| error!(%error, "rules with ports, protocols or a scope stay as they were"))
            .is_ok()
    }

    fn install(&mut self, tables: &Tables) -> bool {
        let before = self.count(Counter::AnsweredEntered);
        let installed = self.kernel.answers.install(tables).map(|()| self.entered_before = before);
        installed
            .map_err(|error| error!(%error, "the kernel keeps matching answers with the rules before these"))
            .is_ok()
    }

    fn retired(&self) -> Vec<(Addr, Entry)> {
        self.kernel.answers.retired().unwrap_or_else(|error| {
            complain("an address whose answer was lost may stop being denied", &error);
            Vec::new()
        })
    }

    fn review_shared(&mut self, is_shared: impl Fn(Addr) -> bool) {
        let forget = |answers: &mut Answers| -> Result<(), BpfError> {
            let all = answers.shared()?;
            all.into_iter()
                .filter(|(addr, _)| !is_shared(*addr))
                .try_for_each(|(addr, _)| answers.forget_shared(addr))
        };
        if let Err(error) = forget(&mut self.kernel.answers) {
            complain("an address may be let through as shared until that runs out", &error);
        }
    }
}

/// Without seats that nobody has.
fn seated(entry: Entry, taken: &Seats) -> Entry {
    let Conditional { until, mut rules } = entry.conditional;
    rules.keep(taken);
    Entry { conditional: Conditional::new(rules, until), ..entry }
}

/// What a counter says; 0, if it cannot be read.
fn told(counter: Result<u64, BpfError>) -> u64 {
    counter.unwrap_or_else(|error| {
        complain("a counter of the kernel side cannot be read", &error);
        0
    })
}

fn complain(consequence: &str, error: &BpfError) {
    if let Some(held_back) = FAILURES.pass(clock::boot_ns()) {
        warn!(%error, held_back, "{consequence}");
    }
}
