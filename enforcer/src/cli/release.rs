//! `enforcer release`

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Exit, Failure, print, settings};
use crate::sys::bpf;
use crate::sys::policy_dir::Distrust;

/// Let go of what a stopped daemon left enforced
///
/// After a crash, or a stop with `on_stop = "keep"`, the kernel goes on refusing what it knows. This ends it. While
/// a daemon runs, nothing is done: stop it first.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let config = settings(config, Distrust::Refuse)?;
    if UnixStream::connect(&config.socket).is_ok() {
        let message = "the daemon runs, and enforces: systemctl stop enforcer";
        return Err(Failure::new(Exit::No, message));
    }
    let root = rustix::process::geteuid().is_root();
    let exit = if root { Exit::Failed } else { Exit::Privilege };
    let found = bpf::release_pins(&config.pin).map_err(|error| Failure::new(exit, error.to_string()))?;
    print(if found { "released: nothing is enforced any more" } else { "nothing was left to release" })?;
    Ok(Exit::Yes)
}
