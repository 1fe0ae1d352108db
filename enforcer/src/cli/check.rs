//! `enforcer check`

use std::io::Write;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{BAD, Distrust, Exit, Failure, GOOD, beside, print, print_json, settings};
use crate::engine::compile::Compiled;
use crate::engine::policy::{self, Source, Tally};
use crate::engine::tables::Budget;
use crate::sys::host;
use crate::sys::policy_dir::{self, Problem, ProblemKind};

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
    let report = match &args.dir {
        Some(dir) => Report::of(dir, Distrust::Ignore),
        None => Report::of(&settings(config, Distrust::Ignore)?.policies, Distrust::Refuse),
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

/// A problem of the directory or a diagnostic of a file, in the two forms it is shown in.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Finding {
    #[serde(skip)]
    text: String,
    json: Value,
}

impl Finding {
    fn new(finding: &(impl Serialize + ToString)) -> Self {
        let text = finding.to_string();
        Self { json: serde_json::to_value(finding).unwrap_or_else(|_| text.clone().into()), text }
    }

    fn warning(problem: &Problem) -> Self {
        Self { text: problem.as_finding("warning"), ..Self::new(problem) }
    }
}

impl Report {
    fn of(dir: &Path, distrust: Distrust) -> Self {
        let (sources, problems) = policy_dir::scan(dir);
        let harmless =
            |problem: &Problem| distrust == Distrust::Ignore && problem.kind == ProblemKind::Untrusted;
        let (warnings, errors): (Vec<_>, Vec<_>) = problems.into_iter().partition(harmless);
        let mut report = Self {
            ok: false,
            directory: dir.to_owned(),
            files: sources.len(),
            rules: 0,
            lists: Vec::new(),
            errors: errors.iter().map(Finding::new).collect(),
            warnings: warnings.iter().map(Finding::warning).collect(),
        };
        report.judge(&sources, harmless);
        report.ok = report.errors.is_empty();
        report
    }

    fn judge(&mut self, sources: &[Source], harmless: impl Fn(&Problem) -> bool) {
        let parsed = match policy::parse(sources) {
            Ok(parsed) => parsed,
            Err(errors) => return self.errors.extend(errors.iter().map(Finding::new)),
        };
        let (lists, _, problems) = policy_dir::read_lists(&parsed.set);
        let (warnings, errors): (Vec<_>, Vec<_>) = problems.into_iter().partition(harmless);
        self.errors.extend(errors.iter().map(Finding::new));
        self.warnings.extend(warnings.iter().map(Finding::warning));
        // Nobody else learns of this table: it needs no secret key.
        match Compiled::with_budget(&parsed.set, &lists, [0; 2], &beside(), Budget::default()) {
            Ok(compiled) => {
                self.rules = compiled.counts().rules;
                self.lists = compiled.lists().to_vec();
                self.warnings.extend(parsed.warnings.iter().chain(compiled.warnings()).map(Finding::new));
                let resolvers =
                    host::asked().into_iter().map(|addr| Ipv6Addr::from(addr.octets()).to_canonical());
                let cuts = policy::cut_off(&parsed.set, &resolvers.collect::<Vec<_>>());
                self.warnings.extend(cuts.iter().map(Finding::new));
            }
            Err(errors) => self.errors.extend(errors.iter().map(Finding::new)),
        }
    }

    /// Errors to stderr; warnings, what the lists hold and the sum to stdout.
    fn print(&self) -> Result<(), Failure> {
        let mut stderr = anstream::stderr().lock();
        for finding in &self.errors {
            writeln!(stderr, "{}", finding.text.trim_end())?;
        }
        drop(stderr);
        for warning in &self.warnings {
            print(warning.text.trim_end())?;
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
