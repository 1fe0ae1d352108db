//! One command under a policy of its own: the daemon's loop for one control group, without the daemon.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use enforcer_common::counter::Counter;
use enforcer_common::kernel::{REPORT_ALL, TCP_CONNECT, UDP_CONNECT};
use ipnetwork::IpNetwork;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use super::DaemonError;
use super::installer::Installer;
use crate::config::{Config, DefaultVerdict};
use crate::engine::compile::Compiled;
use crate::engine::record::{Event, VerdictName};
use crate::engine::reload::Kernel as _;
use crate::engine::state::{Facts, State};
use crate::sys::bpf::{Hooks, Kernel, Options, Ring};
use crate::sys::clock;
use crate::sys::enclosure::Enclosure;
use crate::sys::host::Host;
use crate::sys::preflight::Preflight;
use crate::sys::ring::Record;

const V4_ALL: &str = "0.0.0.0/0";
const V6_ALL: &str = "::/0";
const TICK: Duration = Duration::from_millis(500);
/// Less than a host needs, so that a hundred commands at once take no more memory than the daemon.
const ADDRESSES: u32 = 8192;
const RING_BYTES: u32 = 512 * 1024;
/// Destinations that are told one by one. More are counted together.
const DESTINATIONS: usize = 1_000;

/// How a command did.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    /// With how many connects went there.
    pub destinations: BTreeMap<Destination, u64>,
    /// Connects to destinations beyond `DESTINATIONS`.
    pub others: u64,
    /// Connects, as the kernel counted them: also those whose report was lost.
    pub connects: u64,
    pub denied: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    pub refused: bool,
    pub audited: bool,
    pub name: Option<String>,
    pub address: IpAddr,
    pub port: u16,
    pub rule: Option<String>,
}

/// Runs the command until it ends, and what it left running in its control group with it. To be called before any
/// thread is started.
pub fn exec(
    compiled: Compiled,
    default: DefaultVerdict,
    command: &mut Command,
) -> Result<Outcome, DaemonError> {
    let preflight = Preflight::read("/".as_ref());
    let lacking = preflight.problems().into_iter().filter(|problem| problem.fatal);
    let lacking: Vec<String> = lacking.map(|problem| problem.to_string()).collect();
    if !lacking.is_empty() {
        return Err(DaemonError::Start(lacking.join("\n")));
    }
    let mount = preflight
        .cgroup2()
        .ok_or_else(|| DaemonError::Start("no cgroup2 mount: mount -t cgroup2 none /sys/fs/cgroup".into()))?;
    let enclosure = Enclosure::new(&mount).map_err(|error| {
        DaemonError::Start(format!("{error}: exec needs root, and a cgroup2 that may be written"))
    })?;
    let config = Config::default();
    let options = Options {
        pin: enclosure.pins(),
        cgroup: enclosure.cgroup(),
        hooks: Hooks::Cgroup,
        report: REPORT_ALL,
        events: TCP_CONNECT | UDP_CONNECT,
        arguments: false,
        aggregate: false,
        outcome: false,
        ignore: &[],
        cgroup_root: &mount,
        read_kernel: preflight.lockdown.as_deref() != Some("confidentiality"),
        lifetime: config.lifetime(),
        quotas: config.quotas(),
        audit: false,
        default_deny: default == DefaultVerdict::Deny,
        egress: true,
        addresses: ADDRESSES,
        ring: RING_BYTES,
    };
    let (kernel, ring) = Kernel::start(&options)?;
    let mut session = Session::new(&config, kernel)?;
    session.enforce(compiled)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::Io { what: "cannot start the runtime", source })?;
    let status = runtime.block_on(async {
        // SAFETY: the ring owns its descriptor, and neither closes nor changes it before it is dropped.
        let mut ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| DaemonError::Io { what: "cannot wait for the ring", source: error.into() })?;
        let mut signals = Signals::new()?;
        let mut child = enclosure
            .spawn(command)
            .map_err(|source| DaemonError::Io { what: "cannot run the command", source })?;
        let status = session.watch(&mut child, &mut ring, &mut signals).await?;
        session.drain(ring.get_mut());
        Ok::<_, DaemonError>(status)
    })?;
    Ok(session.outcome(status))
}

struct Session {
    state: State,
    installer: Installer,
    destinations: BTreeMap<Destination, u64>,
    others: u64,
}

/// What is passed on to the command, or is its matter alone.
struct Signals {
    child: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
    /// A terminal sends them to the command as well.
    int: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        let catch =
            |kind| signal(kind).map_err(|source| DaemonError::Io { what: "cannot catch signals", source });
        Ok(Self {
            child: catch(SignalKind::child())?,
            term: catch(SignalKind::terminate())?,
            hup: catch(SignalKind::hangup())?,
            int: catch(SignalKind::interrupt())?,
            quit: catch(SignalKind::quit())?,
        })
    }
}

impl Session {
    fn new(config: &Config, kernel: Kernel) -> Result<Self, DaemonError> {
        let host = Host::read()
            .map_err(|source| DaemonError::Io { what: "cannot read this host's addresses", source })?;
        let state = super::start::state(config, &host);
        let mut installer = Installer::new(kernel)?;
        // Whom the command asks is its own matter: nobody else is denied anything by it.
        let anybody =
            [V4_ALL, V6_ALL].map(|all| all.parse()).into_iter().flatten().collect::<Vec<IpNetwork>>();
        installer.protect(state.never_deny(), &host.servers, &anybody);
        Ok(Self { state, installer, destinations: BTreeMap::new(), others: 0 })
    }

    fn enforce(&mut self, compiled: Compiled) -> Result<(), DaemonError> {
        // Nothing of a session before this one is there: there is nothing to remove, and nothing to discard.
        if !self.installer.enforce(&compiled.conditions().table) {
            return Err(DaemonError::Start(
                "rules with ports, protocols or a scope cannot be put in force".into(),
            ));
        }
        self.installer.set_networks(compiled.networks());
        if !self.installer.install(compiled.tables()) {
            return Err(DaemonError::Start("the names of the policy cannot be put in force".into()));
        }
        let steps = self.state.set_policy(compiled, clock::boot_ns());
        self.installer.addresses(steps, &mut self.state);
        Ok(())
    }

    async fn watch(
        &mut self,
        child: &mut Child,
        ring: &mut AsyncFd<Ring>,
        signals: &mut Signals,
    ) -> Result<ExitStatus, DaemonError> {
        let mut ticks = tokio::time::interval(TICK);
        let pid = Pid::from_child(child);
        loop {
            if let Some(status) = child
                .try_wait()
                .map_err(|source| DaemonError::Io { what: "cannot wait for the command", source })?
            {
                return Ok(status);
            }
            tokio::select! {
                _ = signals.child.recv() => {}
                _ = signals.int.recv() => {}
                _ = signals.quit.recv() => {}
                // It may have ended already.
                _ = signals.term.recv() => drop(kill_process(pid, Signal::TERM)),
                _ = signals.hup.recv() => drop(kill_process(pid, Signal::HUP)),
                _ = ticks.tick() => {
                    let steps = self.state.tick(clock::boot_ns());
                    self.installer.addresses(steps, &mut self.state);
                    self.drain(ring.get_mut());
                }
                ready = ring.readable_mut() => {
                    let mut ready = ready.map_err(|source| DaemonError::Io { what: "cannot wait for the ring", source })?;
                    self.drain(ready.get_inner_mut());
                    ready.clear_ready();
                }
            }
        }
    }

    fn drain(&mut self, ring: &mut Ring) {
        while ring.next(|bytes| self.record(bytes)).is_some() {}
    }

    fn record(&mut self, bytes: &[u8]) {
        match Record::parse(bytes) {
            Some(Record::Answer(header, payload)) => {
                let steps = self.state.answer(&header, payload);
                self.installer.addresses(steps, &mut self.state);
            }
            Some(Record::Connect(record, _)) => {
                let event = self.state.connect(&record, Facts::default(), clock::wall_time(record.time));
                self.count(&event);
            }
            None => tracing::error!(bytes = bytes.len(), "a record of the ring cannot be read"),
        }
    }

    fn count(&mut self, event: &Event) {
        let Some(connect) = event.connect() else { return };
        let destination = Destination {
            refused: connect.verdict == VerdictName::Deny,
            audited: connect.verdict == VerdictName::Audit,
            name: connect.results.first().cloned(),
            address: connect.dst_ip,
            port: connect.dst_port,
            rule: connect.rule.clone(),
        };
        if let Some(count) = self.destinations.get_mut(&destination) {
            *count += 1;
        } else if self.destinations.len() < DESTINATIONS {
            self.destinations.insert(destination, 1);
        } else {
            self.others += 1;
        }
    }

    fn outcome(self, status: ExitStatus) -> Outcome {
        Outcome {
            status,
            connects: self.installer.count(Counter::Connects),
            denied: self.installer.count(Counter::Denied),
            destinations: self.destinations,
            others: self.others,
        }
    }
}

impl Outcome {
    /// As shells have it: what the command returned, or 128 and the signal that ended it.
    pub fn code(&self) -> u8 {
        let code =
            self.status.code().or_else(|| self.status.signal().map(|signal| 128 + signal)).unwrap_or(1);
        u8::try_from(code).unwrap_or(1)
    }
}
