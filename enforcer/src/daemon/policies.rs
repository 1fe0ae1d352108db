//! The policy directory of the daemon: what of it is in force, and what is told of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use enforcer_common::limits::LITERALS;
use tracing::{error, info, warn};

use super::last_good::Keeper;
use crate::api::PolicyStatus;
use crate::engine::compile::{Beside, Compiled};
use crate::engine::conditions::CONDITIONAL;
use crate::engine::name::Name;
use crate::engine::policy::{self, Source};
use crate::sys::clock;
use crate::sys::last_good::LastGood;
use crate::sys::policy_dir::{Distrust, WatchedLists};
use crate::sys::rules::{self, Reading, Rules};

pub(super) struct Policies {
    directory: PathBuf,
    /// What else is watched.
    lists: WatchedLists,
    status: PolicyStatus,
    loaded_at: u64,
    /// What each rule in force says, as a number.
    digests: HashMap<String, u64>,
    /// Names that the rules in force spell out, as many as are asked for; and how many there are.
    literals: (Vec<Name>, usize),
    /// On trial: read in place of the file of that path.
    overlay: Option<Source>,
    /// For a start that finds errors in the files.
    pub(super) keeper: Keeper,
    /// What is to be kept once it is in force. Nothing, if it is not what the files say.
    loaded: Option<LastGood>,
    /// The files were read once.
    begun: bool,
}

impl Policies {
    pub(super) fn new(directory: PathBuf, lists: WatchedLists, keeper: Keeper) -> Self {
        let status = PolicyStatus { directory: directory.display().to_string(), ..PolicyStatus::default() };
        Self {
            directory,
            lists,
            status,
            loaded_at: clock::boot_ns(),
            digests: HashMap::new(),
            literals: (Vec::new(), 0),
            overlay: None,
            keeper,
            loaded: None,
            begun: false,
        }
    }

    /// Reads the directory as it is then, for `load`. Large lists take long.
    pub(super) fn reader(&self) -> impl Fn(&Beside) -> Reading + Sync + use<> {
        let (directory, overlay) = (self.directory.clone(), self.overlay.clone());
        move |beside| rules::read(Some(&directory), overlay.as_slice(), Distrust::Refuse, beside)
    }

    /// The rules that were read. `None`: something is wrong with them, which is logged and kept for `status`; the rules in
    /// force stay. At the start there are none yet: then it is the last good policy.
    pub(super) fn load(&mut self, why: &str, mut reading: Reading, beside: &Beside) -> Option<Compiled> {
        let first = !std::mem::replace(&mut self.begun, true);
        self.status.built_in = beside.spared.iter().map(|_| policy::ENCRYPTED_DNS_FILE.to_owned()).collect();
        self.lists.set(std::mem::take(&mut reading.listed));
        match self.take(why, reading) {
            Ok((compiled, copy)) => {
                self.status.loads += 1;
                self.status.error = None;
                self.status.last_good = None;
                // What is on trial is not what the files say.
                self.loaded = self.overlay.is_none().then_some(copy);
                Some(compiled)
            }
            Err(report) => {
                let copy = if first { self.last_good(beside) } else { None };
                let consequence = match (&self.status.last_good, self.status.loads) {
                    (Some(saved), _) => format!("the last good policy, put in force at {saved}, is enforced"),
                    (None, 0) => "no rule of these files is in force".to_owned(),
                    (None, _) => "the rules loaded before stay in force".to_owned(),
                };
                error!(why, "the policies have errors; {consequence}:\n{report}");
                self.status.failed_loads += 1;
                self.status.error = Some(report);
                copy
            }
        }
    }

    /// What can be put in force, and a copy of what it was read from; or everything that is wrong.
    fn take(&mut self, why: &str, reading: Reading) -> Result<(Compiled, LastGood), String> {
        let Reading { sources: policies, rules, warnings, .. } = reading;
        let Rules { compiled, set, lists } = rules.map_err(|errors| rules::lines(&errors))?;
        for warning in warnings {
            warn!("{warning}");
        }
        let (counts, files) = (compiled.counts(), policies.len());
        self.status.files = files;
        self.status.rules = counts.rules;
        self.status.conditional = counts.conditional;
        self.status.conditional_capacity = CONDITIONAL;
        self.status.patterns = counts.patterns;
        self.status.networks = counts.networks;
        self.status.names = counts.names;
        self.status.globs = counts.globs;
        self.status.states = counts.states;
        self.status.late_globs = counts.late_globs;
        self.status.skipped_lines = counts.skipped;
        let literals = set.literals();
        self.literals =
            (literals.iter().take(LITERALS).map(|name| Name::clone(name)).collect(), literals.len());
        self.digests = policy::digests(&set, &lists);
        self.loaded_at = clock::boot_ns();
        info!(why, files, rules = counts.rules, patterns = counts.patterns, "policies loaded");
        Ok((compiled, LastGood { saved: clock::wall_now() / 1_000_000_000, policies, lists }))
    }

    /// The policy that was last in force before this start.
    fn last_good(&mut self, beside: &Beside) -> Option<Compiled> {
        let copy = self.keeper.read()?;
        let saved = clock::wall_seconds(copy.saved);
        match self.take("last good policy", rules::of_copy(copy, beside)) {
            Ok((compiled, _)) => {
                self.status.last_good = Some(saved);
                Some(compiled)
            }
            Err(report) => {
                error!("the last good policy cannot be enforced any more:\n{report}");
                None
            }
        }
    }

    /// The rules of the last `load` are in force, so long after its begin.
    pub(super) fn took(&mut self, nanoseconds: u64) {
        self.status.load_milliseconds = nanoseconds / 1_000_000;
        if let Some(policy) = self.loaded.take() {
            self.keeper.offer(policy);
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn digests(&self) -> &HashMap<String, u64> {
        &self.digests
    }

    /// The names that the rules in force spell out, as many as are asked for; and how many there are.
    pub(super) fn literals(&self) -> (&[Name], usize) {
        (&self.literals.0, self.literals.1)
    }

    /// From the next `load` on, this is read as well, in place of a file of the same path.
    pub(super) fn set_overlay(&mut self, overlay: Option<Source>) {
        self.overlay = overlay;
    }

    pub(super) fn status(&self) -> PolicyStatus {
        let age = clock::boot_ns().saturating_sub(self.loaded_at) / 1_000_000_000;
        PolicyStatus { loaded_seconds_ago: age, ..self.status.clone() }
    }
}
