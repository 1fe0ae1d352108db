//! From the policy directory to compiled rules: all or nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use super::last_good::Keeper;
use crate::api::PolicyStatus;
use crate::engine::compile::{Beside, Compiled};
use crate::engine::policy::{self, Diagnostic, Lists, Parsed, Source};
use crate::engine::tables::Budget;
use crate::sys::last_good::LastGood;
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
    /// For a start that finds errors in the files.
    pub(super) keeper: Keeper,
    /// What is to be kept once it is in force. Nothing, if it is not what the files say.
    loaded: Option<LastGood>,
    /// The files were read once.
    begun: bool,
}

/// Everything that the files say.
struct Read {
    compiled: Compiled,
    policies: Vec<Source>,
    lists: Lists,
    warnings: Vec<Diagnostic>,
    digests: HashMap<String, u64>,
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
            overlay: None,
            keeper,
            loaded: None,
            begun: false,
        }
    }

    /// The rules of the directory as it is now. `None`: something is wrong with them, which is logged and kept
    /// for `status`; the rules in force stay. At the start there are none yet: then it is the last good policy.
    pub(super) fn load(&mut self, why: &str, beside: &Beside) -> Option<Compiled> {
        let first = !std::mem::replace(&mut self.begun, true);
        match self.read(beside) {
            Ok(read) => {
                self.status.loads += 1;
                self.status.error = None;
                self.status.last_good = None;
                let (compiled, copy) = self.take(why, read);
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

    fn take(&mut self, why: &str, read: Read) -> (Compiled, LastGood) {
        let Read { compiled, policies, lists, warnings, digests } = read;
        for warning in warnings.iter().chain(compiled.warnings()) {
            warn!("{warning}");
        }
        let (counts, files) = (compiled.counts(), policies.len());
        self.status.files = files;
        self.status.rules = counts.rules;
        self.status.patterns = counts.patterns;
        self.status.networks = counts.networks;
        self.status.names = counts.names;
        self.status.globs = counts.globs;
        self.status.states = counts.states;
        self.status.late_globs = counts.late_globs;
        self.status.skipped_lines = counts.skipped;
        self.digests = digests;
        self.loaded_at = clock::boot_ns();
        info!(why, files, rules = counts.rules, patterns = counts.patterns, "policies loaded");
        (compiled, LastGood { saved: clock::wall_now() / 1_000_000_000, policies, lists })
    }

    /// The policy that was last in force before this start.
    fn last_good(&mut self, beside: &Beside) -> Option<Compiled> {
        let copy = self.keeper.read()?;
        let saved = clock::wall_seconds(copy.saved);
        match of_copy(copy, beside) {
            Ok(read) => {
                self.status.last_good = Some(saved);
                Some(self.take("last good policy", read).0)
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
        compile(sources, parsed, lists, beside)
    }
}

/// By the same rules as the files themselves.
fn of_copy(copy: LastGood, beside: &Beside) -> Result<Read, String> {
    let parsed = policy::parse(&copy.policies).map_err(lines)?;
    if let Some((path, _)) = parsed.set.lists().into_iter().find(|(path, _)| !copy.lists.0.contains_key(path))
    {
        return Err(format!("it lacks the list {path}"));
    }
    compile(copy.policies, parsed, copy.lists, beside)
}

fn compile(policies: Vec<Source>, parsed: Parsed, lists: Lists, beside: &Beside) -> Result<Read, String> {
    let key = random::key().map_err(|error| format!("no random numbers: {error}"))?;
    let compiled =
        Compiled::with_budget(&parsed.set, &lists, key, beside, Budget::default()).map_err(lines)?;
    let digests = policy::digests(&parsed.set, &lists);
    Ok(Read { compiled, policies, lists, warnings: parsed.warnings, digests })
}

fn lines<T: ToString>(items: Vec<T>) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
