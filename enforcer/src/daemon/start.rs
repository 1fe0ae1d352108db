//! Start: what this kernel can do, which hooks to use, and whether they really refuse.

use std::path::{Path, PathBuf};

use enforcer_common::answer::Lifetime;
use enforcer_common::kernel::{
    FLOW_BEGIN, REPORT_ALL, REPORT_DENIED, REPORT_NONE, SOCKET_CONNECT, TCP_CONNECT, UDP_CONNECT,
};
use enforcer_common::limits;
use tracing::{error, info, warn};

use super::DaemonError;
use crate::config::{Config, DefaultVerdict, EventKinds, EventVolume, LayerChoice, Mode};
use crate::engine::compile::Network;
use crate::engine::dns::table::TableConfig;
use crate::engine::state::{NeverDeny, State};
use crate::sys::bpf::{BpfError, EXIT_PROGRAM, Hooks, Kernel, Options, Ring};
use crate::sys::canary::{self, Canary};
use crate::sys::clock;
use crate::sys::host::{self, Host};
use crate::sys::preflight::Preflight;

pub(super) struct Started {
    pub(super) kernel: Kernel,
    pub(super) ring: Ring,
    pub(super) enforcement: Enforcement,
    /// Where cgroup2 is mounted.
    pub(super) cgroup: PathBuf,
}

/// What is enforced, as far as we know.
#[derive(Clone, Debug)]
pub(super) struct Enforcement {
    pub(super) kernel: String,
    pub(super) hooks: Hooks,
    /// Why not by LSM.
    pub(super) reason: Option<String>,
    pub(super) canary: Canary,
    /// What preflight found lacking.
    pub(super) problems: Vec<String>,
}

/// Loads and attaches what this kernel supports, and lets the canary prove it.
pub(super) fn start(config: &Config) -> Result<Started, DaemonError> {
    let preflight = Preflight::read("/".as_ref());
    let problems = preflight.problems();
    if problems.iter().any(|problem| problem.fatal) {
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(DaemonError::Start(text.join("\n")));
    }
    let mount = preflight
        .cgroup2()
        .ok_or_else(|| DaemonError::Start("no cgroup2 mount: mount -t cgroup2 none /sys/fs/cgroup".into()))?;
    config.cgroup.as_deref().map_or(Ok(()), |path| is_cgroup2(path, &mount)).map_err(DaemonError::Start)?;
    let ((kernel, ring, canary, hooks), reason) = enforce(config, &preflight, &mount)?;
    for problem in &problems {
        warn!("{problem}");
    }
    let mut problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    if config.outcome && !kernel.tells_outcome {
        let text = "outcome = true, but this kernel does not let us see connects return (no LSM or tracing programs): \
                    events lack errno, source and latency";
        problems.push(text.to_owned());
    }
    if config.kinds.socket_connect && !hooks.lsm() {
        let text =
            "events lists security_socket_connect, which needs the LSM hooks: there are no such events";
        problems.push(text.to_owned());
    }
    if host::users_may_serve_dns() {
        let text = "net.ipv4.ip_unprivileged_port_start is 53 or less: every user can answer DNS questions on this host's own \
                    addresses, and so have addresses denied for everybody. Set it to 1024, or at least to 54";
        problems.push(text.to_owned());
    }
    if confidential(&preflight) {
        let text = "the kernel is locked down (confidentiality): who connects cannot be read, and rules with a scope \
                    apply to nobody";
        problems.push(text.to_owned());
    }
    let enforcement = Enforcement { kernel: preflight.kernel, hooks, reason, canary, problems };
    announce(&enforcement);
    Ok(Started { kernel, ring, enforcement, cgroup: mount })
}

/// Else the kernel says "Bad file descriptor".
fn is_cgroup2(path: &Path, mount: &Path) -> Result<(), String> {
    let is_one = || -> std::io::Result<bool> {
        let is_cgroup2 = rustix::fs::statfs(path)?.f_type == libc::CGROUP2_SUPER_MAGIC;
        Ok(is_cgroup2 && std::fs::metadata(path)?.is_dir())
    };
    let why = match is_one() {
        Ok(true) => return Ok(()),
        Ok(false) => "is no control group: no directory of a cgroup2 file system".to_owned(),
        Err(error) => format!("cannot be used: {error}"),
    };
    let (path, mount) = (path.display(), mount.display());
    Err(format!(
        "cgroup = \"{path}\" in the settings {why}. Write a directory below {mount}, or leave it out for every process of \
         the host"
    ))
}

/// By the hooks of choice, or by cgroup hooks and why.
fn enforce(
    config: &Config,
    preflight: &Preflight,
    mount: &Path,
) -> Result<(Attempt, Option<String>), DaemonError> {
    let (hooks, reason) = choose(config, preflight)?;
    let may_choose = !config.require_lsm && config.layer == LayerChoice::Auto;
    let why = match attach(config, preflight, hooks, mount) {
        Ok(attempt) => match (hooks, &attempt.2) {
            (Hooks::Lsm | Hooks::Both, Canary::Alive(how)) => {
                let why = format!("the LSM hooks are attached but the canary was not refused ({how})");
                if !may_choose {
                    attempt.0.release()?;
                    return Err(DaemonError::Start(format!("{why}, and the configuration requires LSM")));
                }
                why
            }
            _ => return Ok((attempt, reason)),
        },
        // A kernel, or what it runs in, that lets nobody load such programs.
        Err(DaemonError::Bpf(error @ BpfError::Program { .. })) if hooks.lsm() && may_choose => {
            error.to_string()
        }
        Err(error) => return Err(error),
    };
    Ok((attach(config, preflight, Hooks::Cgroup, mount)?, Some(why)))
}

/// The engine's state before the first policy.
pub(super) fn state(config: &Config, host: &Host) -> State {
    let networks = config.never_deny.iter().copied().map(Network::from).collect();
    let never = NeverDeny { networks, host: host.protected() };
    let Lifetime { floor, cap } = config.lifetime();
    let table = TableConfig { ttl_floor: floor, ttl_cap: cap, capacity: limits::TABLE_BINDINGS };
    State::new(table, never, config.quotas(), config.default == DefaultVerdict::Deny)
}

fn events(kinds: EventKinds) -> u32 {
    let bit = |there_is: bool, bit: u32| if there_is { bit } else { 0 };
    bit(kinds.tcp_connect, TCP_CONNECT)
        | bit(kinds.udp_connect, UDP_CONNECT)
        | bit(kinds.socket_connect, SOCKET_CONNECT)
        | bit(kinds.flow_begin, FLOW_BEGIN)
}

type Attempt = (Kernel, Ring, Canary, Hooks);

fn attach(
    config: &Config,
    preflight: &Preflight,
    hooks: Hooks,
    mount: &Path,
) -> Result<Attempt, DaemonError> {
    let options = Options {
        pin: &config.pin,
        cgroup: config.cgroup.as_deref().unwrap_or(mount),
        hooks,
        report: match config.events {
            EventVolume::All => REPORT_ALL,
            EventVolume::Denied => REPORT_DENIED,
            EventVolume::None => REPORT_NONE,
        },
        arguments: config.arguments,
        events: events(config.kinds),
        outcome: config.outcome && hooks.lsm(),
        aggregate: config.aggregate.is_some(),
        audit: config.mode == Mode::Audit,
        default_deny: config.default == DefaultVerdict::Deny,
        ignore: &config.ignore,
        cgroup_root: mount,
        read_kernel: !confidential(preflight),
        egress: config.egress,
        addresses: limits::ADDRESSES,
        ring: limits::RING_BYTES,
        lifetime: config.lifetime(),
        quotas: config.quotas(),
    };
    let (mut kernel, ring) = match Kernel::start(&options) {
        Err(error @ BpfError::Program { program: EXIT_PROGRAM, .. }) => {
            warn!("connects are reported at once, without their outcome: {error}");
            Kernel::start(&Options { outcome: false, ..options })?
        }
        other => other?,
    };
    let canary = canary::release_and_watch(&mut kernel, clock::boot_ns());
    Ok((kernel, ring, canary, hooks))
}

/// The hooks to use, and why not LSM.
fn choose(config: &Config, preflight: &Preflight) -> Result<(Hooks, Option<String>), DaemonError> {
    let obstacle = if confidential(preflight) {
        Some(
            "the kernel is locked down (confidentiality), where LSM programs cannot read addresses"
                .to_owned(),
        )
    } else if preflight.lsm.is_some() && !preflight.lsm_bpf_active() {
        Some("`bpf` is not in the kernel's list of active LSMs".to_owned())
    } else {
        None
    };
    match (config.layer, obstacle) {
        (LayerChoice::Cgroup, _) if !config.require_lsm => {
            Ok((Hooks::Cgroup, Some("enforcer.toml says layer = \"cgroup\"".into())))
        }
        (LayerChoice::Cgroup, _) => Err(DaemonError::Start(
            "enforcer.toml says both `require_lsm = true` and `layer = \"cgroup\"`: remove one".into(),
        )),
        (LayerChoice::Both, None) => Ok((Hooks::Both, None)),
        (_, None) => Ok((Hooks::Lsm, None)),
        (LayerChoice::Auto, Some(why)) if !config.require_lsm => Ok((Hooks::Cgroup, Some(why))),
        (_, Some(why)) => {
            let remedies: Vec<String> = preflight.problems().iter().map(ToString::to_string).collect();
            Err(DaemonError::Start(format!(
                "{why}, and the configuration requires LSM.\n{}",
                remedies.join("\n")
            )))
        }
    }
}

fn confidential(preflight: &Preflight) -> bool {
    preflight.lockdown.as_deref() == Some("confidentiality")
}

fn announce(enforcement: &Enforcement) {
    let layer = match enforcement.hooks {
        Hooks::Lsm => "LSM",
        Hooks::Cgroup => "cgroup",
        Hooks::Both => "LSM and cgroup",
    };
    if let Some(reason) = &enforcement.reason {
        warn!("enforcing by cgroup hooks, not by LSM: {reason}");
    }
    match &enforcement.canary {
        Canary::Refused => info!("enforcing by {layer} hooks; the canary was refused"),
        broken => error!("NOT ENFORCING: the canary was {broken}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_control_group_is_said_in_words() {
        let said = |path: &str| is_cgroup2(Path::new(path), Path::new("/sys/fs/cgroup")).unwrap_err();
        let end = ". Write a directory below /sys/fs/cgroup, or leave it out for every process of the host";
        for (path, why) in [
            ("/tmp", "is no control group: no directory of a cgroup2 file system"),
            ("/proc/self/status", "is no control group: no directory of a cgroup2 file system"),
            ("/no/where", "cannot be used: No such file or directory (os error 2)"),
        ] {
            assert_eq!(said(path), format!("cgroup = \"{path}\" in the settings {why}{end}"));
        }
    }
}
