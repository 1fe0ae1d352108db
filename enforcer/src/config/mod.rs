//! `enforcer.toml`: text in, settings that cannot be wrong out. Pure; every error at once.

mod ignore;
mod read;
mod sink;

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use enforcer_common::answer::Lifetime;
use enforcer_common::nat64::Prefixes;
use enforcer_common::quota::{Quota, Quotas};
use enforcer_common::{Verdict, limits};
use ipnetwork::IpNetwork;

pub use read::parse;
pub use sink::{Facility, Http, Output, SinkConfig, SyslogRfc, SyslogServer};

use crate::engine::format::Format;

/// Where the settings are unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/enforcer/enforcer.toml";

/// The settings of the daemon. `packaging/enforcer.toml` documents each for those who write the file.
#[derive(Clone, Debug)]
pub struct Config {
    pub policies: PathBuf,
    pub events: EventVolume,
    pub kinds: EventKinds,
    /// Events carry the command line.
    pub arguments: bool,
    /// Connects that are not refused are reported when the call returns.
    pub outcome: bool,
    /// Repeats within so long are one event. `None`: each is an event.
    pub aggregate: Option<Duration>,
    /// What is not reported, at most `limits::IGNORES` of them.
    pub ignore: Vec<Ignore>,
    pub mode: Mode,
    pub default: DefaultVerdict,
    pub layer: LayerChoice,
    /// Packets are looked at when they leave, too.
    pub egress: bool,
    pub established: Established,
    pub require_lsm: bool,
    pub ttl_floor: Duration,
    pub ttl_cap: Duration,
    /// New addresses that a name, and a rule, may bring in a `ttl_cap`.
    pub addresses_per_name: u32,
    pub addresses_per_rule: u32,
    pub never_deny: Vec<IpNetwork>,
    /// IPv6 prefixes behind which there are IPv4 hosts, beside those that are the same everywhere.
    pub nat64: Prefixes,
    pub doh: Doh,
    /// Servers whose answers to users are believed, beside those of the host.
    pub trusted_servers: Vec<IpNetwork>,
    /// The system's resolver forgets at a start what it knew.
    pub flush_caches: bool,
    /// Answers of systemd-resolved are heard where it tells them.
    pub resolved_monitor: bool,
    /// The names that policies spell out are asked for at a start and with each change.
    pub resolve_literals: bool,
    pub on_stop: OnStop,
    pub socket: PathBuf,
    /// `None`: the root of the cgroup2 mount.
    pub cgroup: Option<PathBuf>,
    pub pin: PathBuf,
    /// `None`: nowhere.
    pub metrics: Option<Metrics>,
    pub state: PathBuf,
    /// As written; what an empty list means depends on the surroundings, see [`Config::sinks_or_default`].
    pub sinks: Vec<SinkConfig>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventVolume {
    All,
    /// Deny and audit verdicts, and gaps.
    Denied,
    None,
}

/// Connects that are not reported: those to which everything here applies. What is empty applies to all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignore {
    /// Never empty.
    pub verdicts: Vec<Verdict>,
    pub uids: Vec<u32>,
    /// Below the cgroup2 mount; those inside count, too.
    pub cgroups: Vec<PathBuf>,
    pub ports: Vec<RangeInclusive<u16>>,
    pub networks: Vec<IpNetwork>,
}

/// Which events there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventKinds {
    pub tcp_connect: bool,
    pub udp_connect: bool,
    /// The raw hook.
    pub socket_connect: bool,
    /// TCP connections as they are established.
    pub flow_begin: bool,
}

impl Default for EventKinds {
    fn default() -> Self {
        Self { tcp_connect: true, udp_connect: true, socket_connect: false, flow_begin: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    /// Nothing is refused, and everything that would be is reported.
    Audit,
}

/// Of a destination that no rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DefaultVerdict {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerChoice {
    Auto,
    Lsm,
    Cgroup,
    Both,
}

/// What becomes of encrypted DNS to public resolvers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Doh {
    Allow,
    Deny,
}

/// What becomes of connections that were open when their address became denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Established {
    Keep,
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    Release,
    Keep,
}

/// Where the metrics can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metrics {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policies: "/etc/enforcer/policies.d".into(),
            events: EventVolume::All,
            kinds: EventKinds::default(),
            arguments: false,
            outcome: false,
            aggregate: None,
            ignore: Vec::new(),
            mode: Mode::Enforce,
            default: DefaultVerdict::Allow,
            layer: LayerChoice::Auto,
            egress: true,
            established: Established::Keep,
            require_lsm: false,
            ttl_floor: Duration::from_secs(60 * 60),
            ttl_cap: Duration::from_secs(24 * 60 * 60),
            addresses_per_name: limits::NAME_ADDRESSES,
            addresses_per_rule: limits::RULE_ADDRESSES,
            never_deny: Vec::new(),
            nat64: Prefixes::NONE,
            doh: Doh::Allow,
            trusted_servers: Vec::new(),
            flush_caches: false,
            resolved_monitor: true,
            resolve_literals: false,
            on_stop: OnStop::Release,
            socket: "/run/enforcer/control.sock".into(),
            cgroup: None,
            pin: "/sys/fs/bpf/enforcer".into(),
            metrics: None,
            state: "/var/lib/enforcer/state.json".into(),
            sinks: Vec::new(),
        }
    }
}

impl Config {
    /// How long an answer is believed.
    pub fn lifetime(&self) -> Lifetime {
        Lifetime { floor: seconds(self.ttl_floor), cap: seconds(self.ttl_cap) }
    }

    pub fn quotas(&self) -> Quotas {
        let quota = |addresses| Quota::new(addresses, seconds(self.ttl_cap));
        Quotas { name: quota(self.addresses_per_name), rule: quota(self.addresses_per_rule) }
    }

    /// The configured sinks; without any, the journal if stdout is connected to it, else text on stdout.
    pub fn sinks_or_default(&self, under_systemd: bool) -> Vec<SinkConfig> {
        match (self.sinks.is_empty(), under_systemd) {
            (false, _) => self.sinks.clone(),
            (true, true) => vec![SinkConfig::new(Output::Journald, Format::Text)],
            (true, false) => vec![SinkConfig::new(Output::Stdout, Format::Text)],
        }
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// Something wrong in the file, where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
    pub hint: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, "\n  hint: {hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_sinks_the_surroundings_decide() {
        let config = Config::default();
        let output = |under_systemd| config.sinks_or_default(under_systemd)[0].output.clone();
        assert_eq!((output(true), output(false)), (Output::Journald, Output::Stdout));
    }
}
