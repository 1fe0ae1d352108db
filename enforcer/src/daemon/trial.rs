//! Policies that are read because somebody asks, and a policy file on trial.
//!
//! A file on trial is enforced from memory: the daemon may not write the policy directory, and whatever happens to it,
//! the files say what was before. Who confirms moves the file to its place and then says so.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use enforcer_common::Addr;
use tracing::{info, warn};

use super::Daemon;
use crate::api::{Changes, Reply, Trial};
use crate::sys::bpf::Ring;
use crate::sys::{clock, policy_dir};

const SECOND: u64 = 1_000_000_000;
/// A trial that somebody forgot should not look like a decision.
const LONGEST: u64 = 24 * 60 * 60;
/// Addresses that are named in a reply.
const NAMED: usize = 1_000;

/// A file that is in force until somebody keeps it, or its time is up.
#[derive(Debug)]
pub(super) struct Running {
    name: String,
    staged: String,
    until: u64,
}

impl Running {
    fn tell(&self, now: u64) -> Trial {
        let left = self.until.saturating_sub(now).div_ceil(SECOND);
        Trial { name: self.name.clone(), staged: self.staged.clone(), seconds_left: left }
    }
}

/// What is compared.
struct Before {
    digests: HashMap<String, u64>,
    names: usize,
    networks: usize,
    denied: BTreeSet<Addr>,
    loads: u64,
}

impl Daemon {
    pub(super) fn reload_and_tell(&mut self, why: &str, ring: &mut Ring) -> Reply {
        let before = self.before();
        self.reload(why, ring);
        let status = self.policies.status();
        match status.error {
            Some(errors) if status.loads == before.loads => Reply::Refused(errors),
            _ => Reply::Reloaded(Box::new(self.changes_since(&before))),
        }
    }

    pub(super) fn try_out(&mut self, name: String, staged: String, seconds: u64, ring: &mut Ring) -> Reply {
        if let Some(running) = &self.trial {
            let other = &running.name;
            return Reply::Error(format!(
                "{other} is on trial: `enforcer apply --keep` or `--undo` it first, or wait"
            ));
        }
        if !policy_dir::is_policy_name(name.as_ref()) || name.contains('/') || staged.contains('/') {
            return Reply::Error(format!("{name:?} is not the name of a policy file: it ends with .toml"));
        }
        let directory = self.policies.directory();
        let path = directory.join(&name).display().to_string();
        let source = match policy_dir::read_file(&directory.join(&staged)) {
            Ok(Some((source, None))) => source,
            Ok(None) => return Reply::Error(format!("{staged} is not in the policy directory any more")),
            Ok(Some((_, Some(problem)))) | Err(problem) => return Reply::Error(problem.to_string()),
        };
        self.policies.set_overlay(Some(policy_dir::Source { path, ..source }));
        let reply = self.reload_and_tell("trial", ring);
        if let Reply::Reloaded(_) = reply {
            let until = clock::boot_ns() + seconds.clamp(1, LONGEST) * SECOND;
            info!(name, seconds, "a policy file is on trial");
            self.trial = Some(Running { name, staged, until });
        } else {
            self.policies.set_overlay(None);
            // What was wrong stands in the reply; `status` speaks of the files.
            self.reload("a refused trial", ring);
        }
        reply
    }

    pub(super) fn keep(&mut self, ring: &mut Ring) -> Reply {
        let Some(running) = self.trial.take() else { return nothing_runs() };
        info!(name = running.name, "the policy file that was on trial stays");
        self.policies.set_overlay(None);
        self.reload_and_tell("trial kept", ring)
    }

    pub(super) fn undo(&mut self, ring: &mut Ring) -> Reply {
        let Some(running) = self.trial.take() else { return nothing_runs() };
        info!(name = running.name, "the policy file that was on trial is taken back");
        self.policies.set_overlay(None);
        self.reload_and_tell("trial undone", ring)
    }

    pub(super) fn end_trial(&mut self, now: u64, ring: &mut Ring) {
        if let Some(running) = self.trial.take_if(|running| running.until <= now) {
            warn!(name = running.name, "nobody kept the policy file that was on trial: it is taken back");
            self.policies.set_overlay(None);
            self.reload("trial over", ring);
        }
    }

    pub(super) fn trial(&self) -> Option<Trial> {
        self.trial.as_ref().map(|running| running.tell(clock::boot_ns()))
    }

    fn before(&self) -> Before {
        let status = self.policies.status();
        Before {
            digests: self.policies.digests().clone(),
            names: status.names,
            networks: status.networks,
            denied: self.state.denied(clock::boot_ns()),
            loads: status.loads,
        }
    }

    fn changes_since(&self, before: &Before) -> Changes {
        let (status, now) = (self.policies.status(), self.policies.digests());
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let without = |these: &HashMap<String, u64>, others: &HashMap<String, u64>| {
            sorted(these.keys().filter(|name| !others.contains_key(*name)).cloned().collect())
        };
        let other = |(name, digest): (&String, &u64)| {
            before.digests.get(name).is_some_and(|then| then != digest).then(|| name.clone())
        };
        let denied = self.state.denied(clock::boot_ns());
        let addresses = |these: &BTreeSet<Addr>, others: &BTreeSet<Addr>| -> Vec<IpAddr> {
            these.difference(others).map(|addr| IpAddr::from(*addr)).collect()
        };
        let (mut new, mut freed) = (addresses(&denied, &before.denied), addresses(&before.denied, &denied));
        let (denied_count, freed_count) = (new.len(), freed.len());
        new.truncate(NAMED);
        freed.truncate(NAMED);
        Changes {
            added: without(now, &before.digests),
            removed: without(&before.digests, now),
            changed: sorted(now.iter().filter_map(other).collect()),
            names: [before.names, status.names],
            networks: [before.networks, status.networks],
            denied: new,
            freed,
            denied_count,
            freed_count,
            milliseconds: status.load_milliseconds,
        }
    }
}

fn nothing_runs() -> Reply {
    Reply::Error("no policy file is on trial: its time was up, or it was kept or undone already".into())
}
