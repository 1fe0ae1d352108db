//! Joins the engine to the world: one loop takes an input, asks the engine, carries out the effects.

mod established;
mod exec;
mod flows;
mod installer;
mod last_good;
mod policies;
mod recent;
mod remember;
mod repeats;
mod report;
mod resolved;
mod start;
mod trial;

use std::panic;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use enforcer_common::counter::Counter;
use enforcer_common::event::{KIND_FLOW, KIND_SOCKET, Repeats};
use enforcer_common::limits::WAKE_EVERY;
use ipnetwork::IpNetwork;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{error, info, warn};

use crate::api::{Rehearsal, Reply, Request};
use crate::config::{Config, Doh, OnStop};
use crate::engine::blindness::Blindness;
use crate::engine::compile::{Beside, Compiled};
use crate::engine::process::Tail;
use crate::engine::record::Event;
use crate::engine::reload::{self, Begun, Kernel as _};
use crate::engine::state::State;
use crate::sys::bpf::Ring;
use crate::sys::canary::{self, Canary};
use crate::sys::control::{self, Query};
use crate::sys::host::{self, Host};
use crate::sys::literals::Literals;
use crate::sys::metrics::{self, Metrics};
use crate::sys::process::Processes;
use crate::sys::resolved::Monitor;
use crate::sys::ring::Record;
use crate::sys::sink::Sinks;
use crate::sys::systemd::{self, Stop};
use crate::sys::{clock, memory, policy_dir, routes};

use established::Killer;
pub use exec::{Destination, Outcome, exec};
use flows::Listeners;
use installer::Installer;
use last_good::Keeper;
use policies::Policies;
use recent::Recent;
use remember::Memory;
use repeats::Firsts;
use start::Started;

/// How long records are handled before the loop looks at its other inputs, and after how many it looks at the
/// clock. However slow the machine, `enforcer status` is answered and a signal is heard.
const SLICE: u64 = 10_000_000;
const BATCH: usize = 32;
/// For a backlog when the daemon is stopped: below the 90 s after which systemd kills.
const STOP_PATIENCE: u64 = 20_000_000_000;
/// For systemd to say why it stops us.
const ASK_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at the ring during a reload.
const MEANWHILE: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_millis(500);
/// Ticks between two looks at the host's own addresses, and between two canaries.
const HOST_TICKS: u64 = 10;
const CANARY_TICKS: u64 = 60;
/// Ticks between two rotations: so often room is made in the map that the packet path enters answers into.
const ROTATION_TICKS: u64 = 1200;
/// Ticks between two writes of the state file, if there is something new: what a power cut can cost.
const MEMORY_TICKS: u64 = 10;
/// Slices of the ring that may hold up the loop while a rotation is settled; the rest waits for the next turn.
const SETTLE: usize = 20;
/// A connect that takes longer than this has returned, and it was missed: TCP gives up after two minutes.
const OVERDUE: u64 = 600_000_000_000;
/// Events that a follower of the control socket may lag behind.
const FOLLOW: usize = 8192;

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("{0}")]
    Start(String),
    #[error(transparent)]
    Bpf(#[from] crate::sys::bpf::BpfError),
    #[error(transparent)]
    Control(#[from] control::BindError),
    #[error("cannot watch the policy directory: {0}")]
    Watch(std::io::Error),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
}

/// Runs until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<ExitCode, DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::Io { what: "cannot start the runtime", source })?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<ExitCode, DaemonError> {
    // First of all: it also finds out whether another daemon runs.
    let listener = control::bind(&config.socket)?;
    let sinks = Sinks::start(&config.sinks_or_default(crate::sys::log::connected_to_journal()))
        .map_err(DaemonError::Start)?;
    let (changes, lists) = policy_dir::watch(&config.policies).map_err(DaemonError::Watch)?;
    let Started { kernel, ring, mut enforcement, cgroup } = start::start(&config)?;
    let killer = Killer::new(&config).unwrap_or_else(|why| {
        warn!("{why}");
        enforcement.problems.push(why);
        None
    });
    let mut processes = Processes::new(cgroup, config.arguments);
    let listeners =
        if config.kinds.flow_begin { Listeners::read(&mut processes) } else { Ok(Listeners::default()) };
    let listeners = listeners.unwrap_or_else(|error| {
        let why = format!(
            "events lists net_flow_tcp_begin, but the kernel's table of sockets cannot be reached ({error}): who accepts \
             connections is not known of those who listen already. It needs NETLINK_SOCK_DIAG (CONFIG_INET_DIAG)"
        );
        warn!("{why}");
        enforcement.problems.push(why);
        Listeners::default()
    });
    // SAFETY: the ring owns its descriptor, and neither closes nor changes it before it is dropped.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .map_err(|error| DaemonError::Io { what: "cannot wait for the ring", source: error.into() })?;

    let host = Host::read()
        .map_err(|source| DaemonError::Io { what: "cannot read the host's own addresses", source })?;
    let routes = routes::watch().map_err(|source| DaemonError::Io {
        what: "cannot listen for changes of the host's addresses (AF_NETLINK)",
        source,
    })?;
    let (queries, requests) = mpsc::channel(16);
    let (followers, _) = broadcast::channel(FOLLOW);
    let (stop, stopped) = watch::channel(());
    let metrics = config.metrics.clone().map(|at| {
        let metrics = Arc::new(Metrics::default());
        let (counted, queries, stopped) = (Arc::clone(&metrics), queries.clone(), gone(stopped.clone()));
        tokio::spawn(metrics::serve(at, counted, queries, stopped));
        metrics
    });
    let control = tokio::spawn(control::serve(listener, queries, followers.clone(), gone(stopped)));

    let literals = config.resolve_literals.then(Literals::start).transpose().map_err(|source| {
        DaemonError::Io { what: "cannot start the thread that asks for literal names", source }
    })?;
    let mut daemon = Daemon {
        state: start::state(&config, &host),
        resolvers: host::resolvers_version(),
        host,
        installer: Installer::new(kernel)?,
        policies: Policies::new(config.policies.clone(), lists, Keeper::new(&config.state)),
        trial: None,
        recent: Recent::default(),
        memory: Memory::new(config.state.clone()),
        processes,
        listeners,
        sinks,
        metrics,
        followers,
        enforcement,
        started: clock::boot_ns(),
        canary_at: clock::boot_ns(),
        losses: Losses::default(),
        settled: Losses::default(),
        firsts: Firsts::default(),
        summed_up: clock::boot_ns(),
        ticks: 0,
        records: 0,
        events: 0,
        blindness: Blindness::default(),
        retired: false,
        concluding: false,
        again: false,
        rehearsal: None,
        killer,
        literals,
        monitor: config.resolved_monitor.then(Monitor::start),
        unflushed: Arc::default(),
        config,
    };
    let mut ring = ring;
    daemon.begin(ring.get_mut());
    daemon.run(&mut ring, changes, routes, requests).await?;
    drop(stop);
    let _ = control.await;
    let why = why_stopped().await;
    if daemon.releases(why) {
        daemon.drain_rest(ring.get_mut());
        daemon.tell_overdue(u64::MAX);
        daemon.sum_up(ring.get_mut());
    }
    daemon.policies.keeper.keep_now().await;
    daemon.memory.keep_now(&daemon.state, daemon.installer.changes).await;
    daemon.end(why)
}

/// `None`: it could not be found out, which must not open anything.
async fn why_stopped() -> Option<Stop> {
    let asked = tokio::task::spawn_blocking(systemd::why_stopped);
    let error = match tokio::time::timeout(ASK_PATIENCE, asked).await {
        Ok(Ok(Ok(why))) => return Some(why),
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {ASK_PATIENCE:?}"),
    };
    warn!(error, "cannot ask systemd whether this is a stop or a restart");
    None
}

/// Ends when the other side of the channel is dropped.
async fn gone(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

/// Records that the kernel could not hand over, as already told in a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Losses {
    events: u64,
    answers: u64,
}

struct Daemon {
    config: Config,
    host: Host,
    resolvers: host::ResolversVersion,
    state: State,
    installer: Installer,
    policies: Policies,
    trial: Option<trial::Running>,
    recent: Recent,
    memory: Memory,
    processes: Processes,
    listeners: Listeners,
    sinks: Sinks,
    metrics: Option<Arc<Metrics>>,
    followers: broadcast::Sender<Arc<Event>>,
    enforcement: start::Enforcement,
    started: u64,
    canary_at: u64,
    losses: Losses,
    /// Losses when what the packet path had entered was taken over last.
    settled: Losses,
    firsts: Firsts,
    /// When the last window of repeats ended.
    summed_up: u64,
    ticks: u64,
    /// Read from the ring.
    records: u64,
    events: u64,
    blindness: Blindness,
    /// What the packet path entered before the last rotation is still to be discarded.
    retired: bool,
    /// After that, the conditional rules before the last reload go.
    concluding: bool,
    /// After that, the policies are to be loaded again.
    again: bool,
    /// When a rehearsal ends.
    rehearsal: Option<u64>,
    killer: Option<Killer>,
    literals: Option<Literals>,
    monitor: Option<Monitor>,
    /// Why a resolver may still know what it was asked before the start.
    unflushed: Arc<Mutex<Option<String>>>,
}

impl Daemon {
    /// Takes over what is pinned, loads the policies, tells systemd.
    fn begin(&mut self, ring: &mut Ring) {
        match self.installer.adopted() {
            Ok(entries) => self.state.adopt(entries),
            Err(error) => error!(%error, "cannot read the address map of the daemon before this one"),
        }
        self.losses = self.read_losses();
        self.settled = self.losses;
        self.protect();
        self.memory.restore(&mut self.state);
        self.reload("start", ring);
        self.installer.kernel().supersede();
        // Of a daemon before this one, or while none ran.
        self.tell_counted();
        self.flush_caches();
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        self.tell_systemd();
    }

    /// Now that what is asked again is seen.
    fn flush_caches(&self) {
        if !self.config.flush_caches {
            return;
        }
        let unflushed = Arc::clone(&self.unflushed);
        tokio::task::spawn_blocking(move || match systemd::flush_caches() {
            Ok(true) => info!("systemd-resolved forgot what it knew before"),
            Ok(false) => info!("flush_caches = true, but systemd-resolved does not run: nothing is flushed"),
            Err(error) => {
                let text = format!(
                    "flush_caches = true, but what was looked up before the start may still be cached: {error}. Restart \
                     the resolver, or remove the line"
                );
                warn!("{text}");
                *unflushed.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
            }
        });
    }

    /// What programs know from before is denied when the answer comes.
    fn ask_for_literals(&self) {
        if let Some(literals) = &self.literals {
            literals.ask(self.policies.literals().0.to_vec());
        }
    }

    async fn run(
        &mut self,
        ring: &mut AsyncFd<Ring>,
        mut changes: mpsc::Receiver<()>,
        mut routes: mpsc::Receiver<()>,
        mut requests: mpsc::Receiver<Query>,
    ) -> Result<(), DaemonError> {
        let signals =
            |kind| signal(kind).map_err(|source| DaemonError::Io { what: "cannot catch signals", source });
        let (mut term, mut int) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
        let mut hup = signals(SignalKind::hangup())?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The kernel wakes us no more often than that.
        let wake_every = Duration::from_nanos(WAKE_EVERY);
        let mut look_again = None;
        loop {
            self.settle(ring.get_mut());
            self.kill();
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = hup.recv() => {
                    self.sinks.reopen();
                    self.reload("SIGHUP", ring.get_mut());
                }
                Some(()) = changes.recv() => self.reload("change", ring.get_mut()),
                Some(()) = routes.recv() => self.look_at_host(ring.get_mut()),
                Some((request, reply)) = requests.recv() => self.answer(request, reply, ring.get_mut()),
                _ = ticks.tick() => {
                    self.tick(ring.get_mut());
                    // Should a wake-up ever be lost, it costs half a second and not the enforcement.
                    self.drain(ring.get_mut());
                    self.policies.keeper.keep().await;
                    if self.ticks.is_multiple_of(MEMORY_TICKS) {
                        self.memory.keep(&self.state, self.installer.changes).await;
                    }
                    self.end_window(ring.get_mut(), clock::boot_ns());
                }
                ready = ring.readable_mut() => {
                    let mut ready = ready.map_err(|source| DaemonError::Io { what: "cannot wait for the ring", source })?;
                    if self.drain(ready.get_inner_mut()) {
                        ready.clear_ready();
                    } else {
                        // A branch that is always ready never lets the control socket's tasks run.
                        tokio::task::yield_now().await;
                    }
                    look_again = Some(Instant::now() + wake_every);
                }
                () = resolved::told(self.monitor.as_ref()) => self.hear(),
                () = sleep_until(look_again.unwrap_or_else(Instant::now)), if look_again.is_some() => {
                    let before = self.records;
                    let wait = if self.drain(ring.get_mut()) { wake_every } else { Duration::ZERO };
                    look_again = (self.records > before).then(|| Instant::now() + wait);
                }
            }
        }
        Ok(())
    }

    fn releases(&self, why: Option<Stop>) -> bool {
        why == Some(Stop::Asked) && self.config.on_stop == OnStop::Release
    }

    /// Handles what happened before the stop, if the ring goes with the programs; else the next daemon reads it.
    fn drain_rest(&mut self, ring: &mut Ring) {
        let end = clock::boot_ns() + STOP_PATIENCE;
        while !self.drain(ring) {
            if clock::boot_ns() > end {
                warn!(
                    "stopping with a backlog of events, which are lost: the ring fills faster than it is read"
                );
                return;
            }
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }

    /// Handles records for a while. True: the ring is empty.
    fn drain(&mut self, ring: &mut Ring) -> bool {
        let end = clock::boot_ns() + SLICE;
        let mut empty = false;
        while !empty && clock::boot_ns() < end {
            // First: who connects may have the address from there, and the event wants its name.
            self.hear();
            empty = (0..BATCH).any(|_| ring.next(|bytes| self.record(bytes)).is_none());
        }
        self.tell_losses();
        empty
    }

    fn record(&mut self, bytes: &[u8]) {
        self.records += 1;
        match Record::parse(bytes) {
            Some(Record::Answer(header, payload)) => {
                let steps = self.state.answer(&header, payload);
                self.note_denials(&steps);
                self.installer.addresses(steps, &mut self.state);
                for event in self.state.refusals(clock::wall_time) {
                    self.emit(Arc::new(event), None);
                }
            }
            Some(Record::Connect(record, tail)) => {
                let facts = self.processes.facts(&record, &tail);
                let time = clock::wall_time(record.time);
                let event = Arc::new(match record.kind {
                    KIND_SOCKET => self.state.socket_connect(&record, tail.address(), facts, time),
                    KIND_FLOW => {
                        let owner = self.listeners.owner(&record).cloned();
                        self.state.flow(&record, facts, owner, time)
                    }
                    _ => self.state.connect(&record, facts, time),
                });
                self.firsts.remember(&record, &event);
                self.emit(event, Some(record.time));
            }
            None => {
                error!(bytes = bytes.len(), "a record of the ring cannot be read: kernel and daemon disagree")
            }
        }
    }

    /// `seen`: when the kernel saw it, if it was told at once.
    fn emit(&mut self, event: Arc<Event>, seen: Option<u64>) {
        self.events += 1;
        self.blindness.count(&event, |addr| self.state.never_deny().contains(addr));
        self.recent.push(&event);
        self.sinks.send(Arc::clone(&event));
        if let Some(metrics) = &self.metrics {
            metrics.event(&event, seen.map(|seen| clock::boot_ns().saturating_sub(seen)));
        }
        // Nobody follows: that is no loss.
        let _ = self.followers.send(event);
    }

    /// Puts a gap into the stream where records were lost.
    fn tell_losses(&mut self) {
        let now = self.read_losses();
        if now != self.losses {
            let lost_events = now.events.saturating_sub(self.losses.events);
            let lost_answers = now.answers.saturating_sub(self.losses.answers);
            self.losses = now;
            let gap = self.state.gap(clock::wall_time(clock::boot_ns()), lost_events, lost_answers);
            self.emit(Arc::new(gap), None);
        }
    }

    fn read_losses(&self) -> Losses {
        let count = |counter| self.installer.count(counter);
        Losses { events: count(Counter::LostEvents), answers: count(Counter::LostAnswers) }
    }

    /// Discards what the packet path entered before the last reload or rotation. The daemon holds the same claims,
    /// as far as they still hold, once it has read the ring to its end; what it never saw it takes over.
    fn settle(&mut self, ring: &mut Ring) {
        if self.retired && (0..SETTLE).any(|_| self.drain(ring)) {
            if self.losses.answers != self.settled.answers {
                self.settled = self.losses;
                let steps = self.state.carry(self.installer.retired(), clock::boot_ns());
                self.installer.addresses(steps, &mut self.state);
            }
            if self.concluding {
                reload::hold(&mut self.state, &mut self.installer, clock::boot_ns());
            }
            self.retired = !self.installer.discard_retired();
            if self.concluding && !self.retired {
                self.conclude(ring);
            }
        }
    }

    /// Ends a window of repeats when its time has come.
    fn end_window(&mut self, ring: &mut Ring, now: u64) {
        let Some(window) = self.config.aggregate else { return };
        if now.saturating_sub(self.summed_up) >= u64::try_from(window.as_nanos()).unwrap_or(u64::MAX) {
            self.summed_up = now;
            self.sum_up(ring);
        }
    }

    /// Tells the repeats since the last time.
    fn sum_up(&mut self, ring: &mut Ring) {
        if let Err(error) = self.installer.kernel().windows.rotate() {
            error!(%error, "repeats are counted on, but cannot be told now");
            return;
        }
        self.firsts.rotate();
        // So that what was reported before a repeat stands before it in the stream, and its facts are known.
        let _ = (0..SETTLE).any(|_| self.drain(ring));
        self.tell_counted();
    }

    fn tell_counted(&mut self) {
        match self.installer.kernel().windows.collect() {
            Ok(repeats) => repeats.iter().for_each(|repeats| self.tell_repeats(repeats)),
            Err(error) => error!(%error, "repeats are counted, but cannot be read"),
        }
    }

    fn tell_repeats(&mut self, repeats: &Repeats) {
        let (state, processes) = (&self.state, &mut self.processes);
        let event = self.firsts.sum_up(repeats, |record| {
            let facts = processes.facts(record, &Tail::default());
            state.connect(record, facts, clock::wall_time(record.time))
        });
        self.emit(Arc::new(event), None);
    }

    /// Tells connects from before `then` whose return was not seen.
    fn tell_overdue(&mut self, then: u64) {
        match self.installer.kernel().overdue(then) {
            Ok(records) => {
                for record in records {
                    let facts = self.processes.facts(&record, &Tail::default());
                    let event = self.state.connect(&record, facts, clock::wall_time(record.time));
                    self.emit(Arc::new(event), None);
                }
            }
            Err(error) => error!(%error, "connects under way cannot be read"),
        }
    }

    fn reload(&mut self, why: &str, ring: &mut Ring) {
        let begin = clock::boot_ns();
        let beside = Beside {
            conditions: self.installer.conditions().clone(),
            accounts: self.processes.accounts.numbers(),
            spared: self.spared(),
        };
        let read = self.policies.reader();
        // At a start there are none yet that records could be told by: they wait.
        let has_rules = self.state.compiled().is_some();
        let reading = if has_rules { self.meanwhile(ring, || read(&beside)) } else { read(&beside) };
        let Some(compiled) = self.policies.load(why, reading, &beside) else {
            // Old and new conditional rules may find room when those before the old ones are gone.
            self.again = self.concluding;
            return;
        };
        // What was answered before counts before.
        if has_rules {
            let _ = (0..SETTLE).any(|_| self.drain(ring));
        }
        let begun = reload::begin(&mut self.state, &mut self.installer, compiled, clock::boot_ns());
        if begun == Begun::Not {
            if !self.concluding {
                self.conclude(ring); // takes the new ones out again
            }
            return;
        }
        let installed = begun == Begun::InForce;
        self.retired |= installed;
        self.look_at_connections();
        // While the packet path still has the old tables it gives out the old seats.
        self.concluding = installed;
        let took = clock::boot_ns() - begin;
        self.policies.took(took);
        if let Some(metrics) = &self.metrics {
            metrics.reload(took);
        }
        self.ask_for_literals();
        memory::give_back();
    }

    /// Handles records while a thread of its own works at something that takes long: lists of a million names take half a
    /// second, in which the ring would overflow and answers be late.
    fn meanwhile<T: Send>(&mut self, ring: &mut Ring, work: impl Fn() -> T + Sync) -> T {
        thread::scope(|scope| {
            let Ok(worker) = thread::Builder::new().spawn_scoped(scope, &work) else { return work() };
            while !worker.is_finished() {
                self.drain(ring);
                thread::sleep(MEANWHILE);
            }
            worker.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Everything that is known was matched with the new rules: the old ones go.
    fn conclude(&mut self, ring: &mut Ring) {
        if !reload::conclude(&mut self.state, &mut self.installer, clock::boot_ns()) {
            return;
        }
        self.concluding = false;
        self.look_at_connections();
        if std::mem::take(&mut self.again) {
            self.reload("again", ring);
        }
    }

    fn tick(&mut self, ring: &mut Ring) {
        self.ticks += 1;
        let now = clock::boot_ns();
        if self.ticks.is_multiple_of(HOST_TICKS) {
            let renumbered = self.processes.accounts.refresh();
            if renumbered && self.state.compiled().is_some_and(Compiled::names_accounts) {
                self.reload("accounts", ring);
            }
            if let Err(error) = self.installer.kernel().ignored_cgroups.refresh() {
                warn!(%error, "cgroups of [[ignore]] may be reported nevertheless");
            }
            self.look_at_host(ring);
        } else if host::resolvers_version() != self.resolvers {
            self.look_at_host(ring);
        }
        self.end_trial(now, ring);
        let steps = self.state.tick(now);
        self.note_denials(&steps);
        self.installer.addresses(steps, &mut self.state);
        self.tell_losses();
        if self.ticks.is_multiple_of(ROTATION_TICKS) {
            self.retired |= self.installer.rotate();
        }
        if self.ticks.is_multiple_of(CANARY_TICKS) {
            // Exceptions run out without a word.
            self.look_at_connections();
            self.tell_overdue(now.saturating_sub(OVERDUE));
            if !self.rehearsing(now) {
                self.release_canary(now);
            }
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    }

    /// Protects what the host is known by now.
    fn look_at_host(&mut self, ring: &mut Ring) {
        self.resolvers = host::resolvers_version();
        let host = match Host::read() {
            Ok(host) => host,
            Err(error) => {
                warn!(%error, "cannot read the host's own addresses; the last known ones stay protected");
                return;
            }
        };
        if host == self.host {
            return;
        }
        self.host = host;
        let steps = self.state.set_host(self.host.protected(), clock::boot_ns());
        self.note_denials(&steps);
        self.installer.addresses(steps, &mut self.state);
        self.protect();
        self.retired |= self.installer.rotate();
        if self.config.doh == Doh::Deny {
            self.reload("host", ring);
        } else {
            self.ask_for_literals();
        }
    }

    /// Encrypted DNS to this host's own resolvers is never denied.
    fn spared(&self) -> Option<Vec<IpNetwork>> {
        (self.config.doh == Doh::Deny).then(|| self.host.never_deny(&self.config.never_deny))
    }

    fn protect(&mut self) {
        self.installer.protect(self.state.never_deny(), &self.host.servers, &self.config.trusted_servers);
    }

    fn release_canary(&mut self, now: u64) {
        let outcome = canary::release_and_watch(self.installer.kernel(), now);
        self.canary_at = now;
        if outcome != self.enforcement.canary {
            match &outcome {
                Canary::Refused => info!("the canary is refused again: denied addresses are denied"),
                broken => error!("the canary was {broken}: denied addresses are NOT denied"),
            }
            self.enforcement.canary = outcome;
            self.tell_systemd();
        }
    }

    /// While it lasts the daemon's own canaries wait, so that every refusal that is counted is one of the rehearsal.
    fn rehearse(&mut self, stage: Rehearsal) -> Reply {
        let now = clock::boot_ns();
        self.rehearsal = Some(if stage == Rehearsal::Over { now } else { now + canary::REHEARSAL });
        match canary::rehearse(self.installer.kernel(), stage, now) {
            Ok(()) => Reply::Caught(self.installer.caught()),
            Err(error) => Reply::Error(format!("the addresses to be tried cannot be denied: {error}")),
        }
    }

    /// True: a rehearsal goes on.
    fn rehearsing(&mut self, now: u64) -> bool {
        if self.rehearsal.is_some_and(|ends| ends <= now) {
            self.rehearsal = None;
            // Who began it may be gone without having ended it; what stays runs out by itself.
            let _ = canary::rehearse(self.installer.kernel(), Rehearsal::Over, now);
        }
        self.rehearsal.is_some()
    }

    fn tell_systemd(&self) {
        let line = report::headline(&self.enforcement, self.config.mode, &self.policies.status());
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&line)]);
    }

    fn answer(&mut self, request: Request, reply: oneshot::Sender<Reply>, ring: &mut Ring) {
        let answer = match request {
            Request::Reload => self.reload_and_tell("enforcer reload", ring),
            Request::Try { name, staged, seconds } => self.try_out(name, staged, seconds, ring),
            Request::Keep => self.keep(ring),
            Request::Undo => self.undo(ring),
            Request::Rehearse { stage } => self.rehearse(stage),
            request => report::reply(self, request),
        };
        // A client that left does not want its answer any more.
        let _ = reply.send(answer);
    }

    fn end(self, why: Option<Stop>) -> Result<ExitCode, DaemonError> {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let releases = self.releases(why);
        if releases {
            self.installer.release()?;
        }
        let rest = "what was denied stays denied; `enforcer release` lets go";
        match why {
            _ if releases => info!("stopped: nothing is enforced any more"),
            Some(Stop::Restart) => info!("stopped for a restart: what was denied stays denied"),
            Some(Stop::Shutdown) => info!("stopped for a shutdown: what was denied stays denied"),
            Some(Stop::Asked) => info!("stopped: {rest} (on_stop = \"keep\")"),
            None => warn!("stopped: {rest}"),
        }
        let waiting = self.sinks.finish(Duration::from_secs(2));
        if waiting > 0 {
            warn!("{waiting} events are lost: their sinks did not take them before the stop");
        }
        let _ = std::fs::remove_file(&self.config.socket);
        Ok(ExitCode::SUCCESS)
    }
}
