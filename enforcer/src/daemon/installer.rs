//! Carries out the engine's steps on the kernel's maps, and remembers what did not work.

use std::collections::HashMap;
use std::time::Duration;

use enforcer_common::counter::Counter;
use enforcer_common::{Addr, Entry};
use tracing::warn;

use crate::engine::compile::Network;
use crate::engine::plan::Step;
use crate::engine::state::State;
use crate::sys::bpf::{BpfError, Kernel};
use crate::sys::clock;
use crate::sys::log::RateLimit;

static FAILURES: RateLimit = RateLimit::new(Duration::from_secs(10));

pub(super) struct Installer {
    kernel: Kernel,
    /// What stands in the kernel's network map.
    networks: HashMap<Network, Entry>,
    /// Addresses that could not be denied.
    pub(super) failed_inserts: u64,
    pub(super) adopted: usize,
}

impl Installer {
    pub(super) fn new(kernel: Kernel) -> Result<Self, BpfError> {
        let networks = kernel.networks()?.into_iter().collect();
        Ok(Self { kernel, networks, failed_inserts: 0, adopted: 0 })
    }

    /// What an earlier daemon left in the address map.
    pub(super) fn adopted(&mut self) -> Result<Vec<(Addr, Entry)>, BpfError> {
        let entries = self.kernel.addresses()?;
        self.adopted = entries.len();
        Ok(entries)
    }

    pub(super) fn apply(&mut self, steps: Vec<Step>, state: &mut State) {
        for step in steps {
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

    /// Adds and updates; returns what the new set no longer has, to be removed after everything else is in
    /// place.
    pub(super) fn put_networks(&mut self, wanted: &[(Network, Entry)]) -> Vec<Network> {
        for (network, entry) in wanted {
            if self.networks.get(network) == Some(entry) {
                continue;
            }
            match self.kernel.put_network(*network, *entry) {
                Ok(()) => drop(self.networks.insert(*network, *entry)),
                Err(error) => {
                    self.failed_inserts += 1;
                    complain("a network is NOT denied", &error);
                }
            }
        }
        let wanted: HashMap<Network, Entry> = wanted.iter().copied().collect();
        self.networks.keys().filter(|network| !wanted.contains_key(network)).copied().collect()
    }

    pub(super) fn remove_networks(&mut self, networks: Vec<Network>) {
        for network in networks {
            match self.kernel.remove_network(network) {
                Ok(()) => drop(self.networks.remove(&network)),
                Err(error) => complain("a network stays denied", &error),
            }
        }
    }

    pub(super) fn networks(&self) -> &HashMap<Network, Entry> {
        &self.networks
    }

    pub(super) fn count(&self, counter: Counter) -> u64 {
        self.kernel.count(counter).unwrap_or_else(|error| {
            complain("a counter of the kernel side cannot be read", &error);
            0
        })
    }

    pub(super) fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    pub(super) fn release(self) -> Result<(), BpfError> {
        self.kernel.release()
    }
}

fn complain(consequence: &str, error: &BpfError) {
    if let Some(held_back) = FAILURES.pass(clock::boot_ns()) {
        warn!(%error, held_back, "{consequence}");
    }
}
