//! `enforcer run`

use std::path::Path;
use std::process::ExitCode;

use super::{Exit, Failure, settings};
use crate::daemon;
use crate::sys::log;
use crate::sys::policy_dir::Distrust;
use crate::sys::preflight::Preflight;

/// Enforce and report, in the foreground, until told to stop
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args, config: Option<&Path>) -> Result<ExitCode, Failure> {
    let config = settings(config, Distrust::Refuse)?;
    if let Some(problem) = Preflight::read(Path::new("/")).capability_problem() {
        return Err(Failure::new(Exit::Privilege, problem.to_string()));
    }
    log::init();
    daemon::run(config).map_err(|error| Failure::new(Exit::Failed, error.to_string()))
}
