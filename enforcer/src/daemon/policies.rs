//! From the policy directory to compiled rules: all or nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use crate::api::PolicyStatus;
use crate::engine::compile::{Beside, Compiled};
use crate::engine::policy::{self, Diagnostic, Source};
use crate::engine::tables::Budget;
use crate::sys::policy_dir::{self, WatchedLists};
use crate::sys::{clock, random};

pub(super) struct Policies {
    directory: PathBuf,
    /// What else is watched.
    lists: WatchedLists,
    status: PolicyStatus,
    loaded_at: u64,
    /// What each rule in force says, as a number.
    digests: HashMap<String, u64>,
    /// On trial: read in place of the file of that path.
    overlay: Option<Source>,
}

/// Everything that the files say.
struct Read {
    compiled: Compiled,
    files: usize,
    warnings: Vec<Diagnostic>,
    digests: HashMap<String, u64>,
}

impl Policies {
    pub(super) fn new(directory: PathBuf, lists: WatchedLists) -> Self {
        let status = PolicyStatus { directory: directory.display().to_string(), ..PolicyStatus::default() };
        Self { directory, lists, status, loaded_at: clock::boot_ns(), digests: HashMap::new(), overlay: None }
    }

    /// The rules of the directory as it is now. `None`: something is wrong with them, which is logged and kept
    /// for `status`; the rules in force stay.
    pub(super) fn load(&mut self, why: &str, beside: &Beside) -> Option<Compiled> {
        match self.read(beside) {
            Ok(Read { compiled, files, warnings, digests }) => {
                for warning in warnings.iter().chain(compiled.warnings()) {
                    warn!("{warning}");
                }
                let counts = compiled.counts();
                self.status.files = files;
                self.status.rules = counts.rules;
                self.status.patterns = counts.patterns;
                self.status.networks = counts.networks;
                self.status.names = counts.names;
                self.status.globs = counts.globs;
                self.status.states = counts.states;
                self.status.late_globs = counts.late_globs;
                self.status.skipped_lines = counts.skipped;
                self.status.loads += 1;
                self.status.error = None;
                self.digests = digests;
                self.loaded_at = clock::boot_ns();
                info!(why, files, rules = counts.rules, patterns = counts.patterns, "policies loaded");
                Some(compiled)
            }
            Err(report) => {
                let consequence = match self.status.loads {
                    0 => "no rule of these files is in force",
                    _ => "the rules loaded before stay in force",
                };
                error!(why, "the policies have errors; {consequence}:\n{report}");
                self.status.failed_loads += 1;
                self.status.error = Some(report);
                None
            }
        }
    }

    /// The rules of the last `load` are in force, so long after its begin.
    pub(super) fn took(&mut self, nanoseconds: u64) {
        self.status.load_milliseconds = nanoseconds / 1_000_000;
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn digests(&self) -> &HashMap<String, u64> {
        &self.digests
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

impl Policies {
    fn read(&self, beside: &Beside) -> Result<Read, String> {
        let mut sources = policy_dir::read(&self.directory).map_err(lines)?;
        if let Some(overlay) = &self.overlay {
            sources.retain(|source| source.path != overlay.path);
            sources.push(overlay.clone());
        }
        let parsed = policy::parse(&sources).map_err(lines)?;
        let (lists, listed, problems) = policy_dir::read_lists(&parsed.set);
        // Also those that cannot be used, so that mending them is noticed.
        self.lists.set(listed);
        if !problems.is_empty() {
            return Err(lines(problems));
        }
        let key = random::key().map_err(|error| format!("no random numbers: {error}"))?;
        let compiled =
            Compiled::with_budget(&parsed.set, &lists, key, beside, Budget::default()).map_err(lines)?;
        let digests = policy::digests(&parsed.set, &lists);
        Ok(Read { compiled, files: sources.len(), warnings: parsed.warnings, digests })
    }
}

fn lines<T: ToString>(items: Vec<T>) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
