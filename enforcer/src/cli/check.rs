//! `enforcer check`

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{BAD, Exit, Failure, GOOD, beside, print, print_json, settings, spared};
use crate::engine::compile::Beside;
use crate::engine::policy::{self, Tally};
use crate::sys::host;
use crate::sys::policy_dir::Distrust;
use crate::sys::rules::{self, Finding, Reading};

/// Read the policy files as the daemon would, and report everything that is wrong
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the policy files [default: as in the settings]. Of a directory named here, files that
    /// the daemon would refuse because others may write them are read, with a warning.
    dir: Option<PathBuf>,
    /// Exit with 1 when there are warnings, too
    #[arg(long)]
    deny_warnings: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let settings = settings(config, Distrust::Ignore)?;
    let beside = Beside { spared: spared(&settings)?, ..beside() };
    let report = match &args.dir {
        Some(dir) => Report::of(dir, Distrust::Ignore, &beside),
        None => Report::of(&settings.policies, Distrust::Refuse, &beside),
    };
    if args.json {
        print_json(&report)?;
    } else {
        report.print()?;
    }
    let fine = report.ok && (!args.deny_warnings || report.warnings.is_empty());
    Ok(if fine { Exit::Yes } else { Exit::No })
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    directory: PathBuf,
    files: usize,
    rules: usize,
    /// What each list file holds.
    lists: Vec<Tally>,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Report {
    fn of(dir: &Path, distrust: Distrust, beside: &Beside) -> Self {
        let Reading { sources, rules, mut warnings, .. } = rules::read(Some(dir), &[], distrust, beside);
        let files = sources.len();
        let directory = dir.to_owned();
        match rules {
            Ok(rules) => {
                let resolvers = host::asked().into_iter().map(IpAddr::from);
                let cuts = policy::cut_off(&rules.set, &resolvers.collect::<Vec<_>>());
                warnings.extend(cuts.into_iter().map(Finding::Diagnostic));
                let (lists, rules) = (rules.compiled.lists().to_vec(), rules.compiled.counts().rules);
                Self { ok: true, directory, files, rules, lists, errors: Vec::new(), warnings }
            }
            Err(errors) => {
                Self { ok: false, directory, files, rules: 0, lists: Vec::new(), errors, warnings }
            }
        }
    }

    /// Errors to stderr; warnings, what the lists hold and the sum to stdout.
    fn print(&self) -> Result<(), Failure> {
        let mut stderr = anstream::stderr().lock();
        for finding in &self.errors {
            writeln!(stderr, "{}", finding.to_string().trim_end())?;
        }
        drop(stderr);
        for warning in &self.warnings {
            print(warning.to_string().trim_end())?;
        }
        for list in &self.lists {
            print(&format!("list: {list}"))?;
        }
        let (style, word) = if self.ok { (GOOD, "ok") } else { (BAD, "not usable") };
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let mut counts = vec![count(self.files, "file"), count(self.rules, "rule")];
        if !self.errors.is_empty() {
            counts[1] = count(self.errors.len(), "error");
        }
        if !self.warnings.is_empty() {
            counts.push(count(self.warnings.len(), "warning"));
        }
        print(&format!("{style}{word}{style:#}: {}: {}", self.directory.display(), counts.join(", ")))
    }
}
