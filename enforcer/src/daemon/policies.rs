//! From the policy directory to compiled rules: all or nothing.

use std::path::PathBuf;

use tracing::{error, info, warn};

use crate::api::PolicyStatus;
use crate::engine::compile::Compiled;
use crate::engine::policy::{self, Diagnostic};
use crate::engine::tables::{Budget, Tables};
use crate::sys::{clock, policy_dir, random};

pub(super) struct Policies {
    directory: PathBuf,
    status: PolicyStatus,
    loaded_at: u64,
}

impl Policies {
    pub(super) fn new(directory: PathBuf) -> Self {
        let status = PolicyStatus { directory: directory.display().to_string(), ..PolicyStatus::default() };
        Self { directory, status, loaded_at: clock::boot_ns() }
    }

    /// The rules of the directory as it is now. `None`: something is wrong with them, which is logged and kept
    /// for `status`; the rules in force stay.
    pub(super) fn load(&mut self, why: &str) -> Option<(Compiled, Tables)> {
        match read(&self.directory) {
            Ok((compiled, tables, files, warnings)) => {
                for warning in warnings {
                    warn!("{warning}");
                }
                for (_, glob) in &tables.late {
                    warn!(
                        glob,
                        "the kernel has no room for this glob: the first connect after an answer may get through"
                    );
                }
                let counts = compiled.counts();
                self.status.files = files;
                self.status.rules = counts.rules;
                self.status.patterns = counts.patterns;
                self.status.networks = counts.networks;
                self.status.loads += 1;
                self.status.error = None;
                self.loaded_at = clock::boot_ns();
                info!(why, files, rules = counts.rules, patterns = counts.patterns, "policies loaded");
                Some((compiled, tables))
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

    pub(super) fn status(&self) -> PolicyStatus {
        let age = clock::boot_ns().saturating_sub(self.loaded_at) / 1_000_000_000;
        PolicyStatus { loaded_seconds_ago: age, ..self.status.clone() }
    }
}

type Loaded = (Compiled, Tables, usize, Vec<Diagnostic>);

fn read(directory: &std::path::Path) -> Result<Loaded, String> {
    let sources = policy_dir::read(directory).map_err(lines)?;
    let parsed = policy::parse(&sources).map_err(lines)?;
    let compiled = Compiled::new(&parsed.set).map_err(lines)?;
    let key = random::key().map_err(|error| format!("no random numbers: {error}"))?;
    let tables = Tables::new(&parsed.set, key, Budget::default());
    Ok((compiled, tables, sources.len(), parsed.warnings))
}

fn lines<T: ToString>(items: Vec<T>) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
