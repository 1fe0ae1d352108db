//! Where events go. Each sink has its own thread and its own bounded queue, so that a slow or dead one
//! delays neither the daemon nor the others; what it misses is counted: written + lost + queued == sent. Where events
//! are missing in a sink's own stream stands a gap with their number.

mod http;
mod journald;
mod lines;
mod otlp;
mod syslog;
mod webhook;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use self::lines::Lines;
use crate::api::SinkStatus;
use crate::config::{self, SinkConfig};
use crate::engine::filter::Filter;
use crate::engine::record::{Direction, Event, Gap};
use crate::sys::clock;
use crate::sys::process::Own;

/// Before a failed write is tried again; doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The far end tells of a connection a moment after the near one, if both are on this host.
const OWN_FLOWS: usize = 64;

/// The running sinks. Dropping them ends each thread after what is queued.
#[derive(Debug)]
pub struct Sinks {
    sinks: Vec<Sink>,
    own: Own,
    /// The near ends of its own connections, as far as there are events of them; the last first.
    own_flows: RefCell<VecDeque<SocketAddr>>,
}

#[derive(Debug)]
struct Sink {
    filter: Option<Filter>,
    /// Its own connects are no events for it: each would cause the next.
    skip_own: bool,
    queue: SyncSender<Item>,
    shared: Arc<Shared>,
}

/// What waits in a queue.
#[derive(Debug)]
enum Item {
    Event(Arc<Event>),
    /// What this sink lost. Not one of the events that it was sent, and not counted as one.
    Gap(Arc<Event>),
    /// Write what has been collected, without waiting for more.
    Flush,
}

impl Sinks {
    /// Starts a thread for each sink. A sink that cannot be opened is not an error here: it is tried again
    /// with each event and shows in the status.
    pub fn start(configs: &[SinkConfig]) -> Result<Self, String> {
        let sinks = configs.iter().map(Sink::start).collect::<Result<_, _>>()?;
        Ok(Self { sinks, own: Own::read(), own_flows: RefCell::default() })
    }

    /// Never blocks: a sink whose queue is full loses the event and counts it.
    pub fn send(&self, event: Arc<Event>) {
        let own = self.is_own(&event);
        for sink in self.sinks.iter().filter(|sink| !(own && sink.skip_own)) {
            sink.send(&event);
        }
    }

    /// Whether the daemon itself connects, or is at the far end of what a process of this host accepts.
    fn is_own(&self, event: &Event) -> bool {
        let own = event.process().is_some_and(|process| self.own.is(process));
        let Event::FlowBegin(flow) = event else { return own };
        let from = SocketAddr::new(flow.src_ip, flow.src_port);
        let mut flows = self.own_flows.borrow_mut();
        match flow.direction {
            Direction::Out if own => {
                flows.truncate(OWN_FLOWS - 1);
                flows.push_front(from);
                true
            }
            Direction::In => own || flows.contains(&from),
            Direction::Out => false,
        }
    }

    pub fn status(&self) -> Vec<SinkStatus> {
        self.sinks.iter().map(Sink::status).collect()
    }

    /// The last `flush`, after which no event tells of those that were lost before it.
    pub fn finish(&self, deadline: Duration) -> u64 {
        let waiting = self.flush(deadline);
        self.sinks.iter().for_each(Sink::tell_gap);
        waiting
    }

    /// Waits until everything sent is written or lost, at most so long. Returns how many events wait still.
    pub fn flush(&self, deadline: Duration) -> u64 {
        let end = clock::boot_ns().saturating_add(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX));
        for sink in &self.sinks {
            // A full queue needs no push.
            let _ = sink.queue.try_send(Item::Flush);
        }
        self.sinks.iter().map(|sink| sink.shared.settle(end)).sum()
    }

    /// Opens files anew before the next event (after logrotate has moved them).
    pub fn reopen(&self) {
        for sink in &self.sinks {
            sink.shared.reopen.store(true, Ordering::Relaxed);
        }
    }
}

impl Sink {
    fn start(config: &SinkConfig) -> Result<Self, String> {
        let name = match config.output {
            config::Output::Stdout | config::Output::File(_) => {
                format!("{} {}", config.format.name(), config.output.name())
            }
            _ => config.output.name(),
        };
        let (queue, items) = sync_channel(config.queue);
        let shared = Arc::new(Shared { name, queue: config.queue, ..Shared::default() });
        let (output, worker) = (output(config), Arc::clone(&shared));
        thread::Builder::new()
            .name("sink".into())
            .spawn(move || work(&items, output, &worker))
            .map_err(|error| format!("cannot start a thread for the sink {}: {error}", shared.name))?;
        Ok(Self { filter: config.filter.clone(), skip_own: config.output.connects(), queue, shared })
    }

    fn send(&self, event: &Arc<Event>) {
        if self.filter.as_ref().is_some_and(|filter| !filter.matches(event)) {
            self.shared.filtered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.tell_gap();
        self.shared.sent.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(Item::Event(Arc::clone(event))).is_err() {
            self.shared.overflow();
            self.shared.missing(missing(event));
        }
    }

    /// Puts a gap where events were lost since the last one, if there is room for it.
    fn tell_gap(&self) {
        let untold = self.shared.take_untold();
        if untold == Missing::default() {
            return;
        }
        let time = clock::wall_time(clock::boot_ns());
        let gap = Gap { time, lost_events: untold.events, lost_answers: untold.answers };
        if self.queue.try_send(Item::Gap(Arc::new(Event::Gap(gap)))).is_err() {
            self.shared.missing(untold);
        }
    }

    fn status(&self) -> SinkStatus {
        let counts = self.shared.counts();
        let error = counts.error.as_ref().map(|error| match counts.failing {
            true => error.clone(),
            false => format!("recovered from: {error}"),
        });
        SinkStatus {
            name: self.shared.name.clone(),
            written: counts.written,
            lost: counts.lost,
            waiting: self.shared.waiting(&counts),
            filtered: self.shared.filtered.load(Ordering::Relaxed),
            error,
        }
    }
}

fn output(config: &SinkConfig) -> Box<dyn Output> {
    let (format, host) = (config.format, host());
    match config.output.clone() {
        config::Output::Stdout => Box::new(Lines::new(None, format, host)),
        config::Output::File(path) => Box::new(Lines::new(Some(path), format, host)),
        config::Output::Syslog { to, facility, rfc } => {
            Box::new(syslog::Syslog::new(to, syslog::Writer { facility, rfc, format, host }))
        }
        config::Output::Journald => Box::new(journald::Journald::default()),
        config::Output::Webhook { http, lines } => Box::new(webhook::Webhook::new(http, lines, format, host)),
        config::Output::Otlp(http) => Box::new(otlp::Otlp::new(http, host)),
    }
}

/// This machine's name.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What a lost event takes with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Missing {
    events: u64,
    answers: u64,
}

fn missing(event: &Event) -> Missing {
    match event {
        Event::Gap(gap) => Missing { events: gap.lost_events, answers: gap.lost_answers },
        other => Missing { events: other.count(), answers: 0 },
    }
}

/// What a sink does with events. Called on the sink's own thread only, so it may block.
trait Output: Send {
    fn write(&mut self, events: &[Arc<Event>]) -> Result<(), Failure>;

    fn reopen(&mut self) {}

    fn batch(&self) -> Batch {
        Batch { events: 256, delay: Duration::ZERO }
    }
}

/// How many events go together.
struct Batch {
    events: usize,
    /// How long the first one waits for others.
    delay: Duration,
}

struct Failure {
    /// So many events, from the first, were written before it failed.
    written: usize,
    error: String,
    /// Try the others again, as the receiver may come back; else they are lost.
    retry: bool,
    /// The receiver asked for so much time.
    pause: Duration,
    /// So many that counted as written before are known to be lost now.
    recalled: u64,
}

impl Failure {
    /// The receiver may come back.
    fn passing(written: usize, error: String) -> Self {
        Self { written, error, retry: true, pause: Duration::ZERO, recalled: 0 }
    }

    /// What could not be written is lost.
    fn lasting(written: usize, error: String) -> Self {
        Self { written, error, retry: false, pause: Duration::ZERO, recalled: 0 }
    }
}

fn work(items: &Receiver<Item>, mut output: Box<dyn Output>, shared: &Shared) {
    while let Ok(first) = items.recv() {
        let mut batch = Collected::default();
        if !batch.take(first) {
            continue;
        }
        batch.collect(items, &output.batch());
        if shared.reopen.swap(false, Ordering::Relaxed) {
            output.reopen();
        }
        deliver(&batch, output.as_mut(), shared);
    }
}

/// What is delivered together.
#[derive(Debug, Default)]
struct Collected {
    events: Vec<Arc<Event>>,
    /// Of each, whether it was sent to this sink: its own gaps were not.
    sent: Vec<bool>,
}

impl Collected {
    /// False: the item asks not to wait for more.
    fn take(&mut self, item: Item) -> bool {
        let (event, sent) = match item {
            Item::Event(event) => (event, true),
            Item::Gap(event) => (event, false),
            Item::Flush => return false,
        };
        self.events.push(event);
        self.sent.push(sent);
        true
    }

    /// What is there, and what comes within the delay.
    fn collect(&mut self, items: &Receiver<Item>, batch: &Batch) {
        let delay = u64::try_from(batch.delay.as_nanos()).unwrap_or(u64::MAX);
        let end = clock::boot_ns().saturating_add(delay);
        while self.events.len() < batch.events {
            let left = if delay == 0 { 0 } else { end.saturating_sub(clock::boot_ns()) };
            let Ok(item) = items.recv_timeout(Duration::from_nanos(left)) else { break };
            if !self.take(item) {
                break;
            }
        }
    }
}

fn deliver(batch: &Collected, output: &mut dyn Output, shared: &Shared) {
    let (mut events, mut sent) = (&batch.events[..], &batch.sent[..]);
    let count = |sent: &[bool]| sent.iter().filter(|sent| **sent).count();
    let mut pause = SHORTEST_PAUSE;
    while !events.is_empty() {
        let Err(failure) = output.write(events) else {
            return shared.succeeded(count(sent));
        };
        let (written, left) = sent.split_at(failure.written.min(sent.len()));
        (events, sent) = (&events[written.len()..], left);
        let lost = if failure.retry { 0 } else { count(sent) };
        shared.failed(count(written), lost, failure.error);
        shared.recall(failure.recalled);
        if !failure.retry {
            events.iter().for_each(|event| shared.missing(missing(event)));
        }
        if !failure.retry {
            return;
        }
        thread::sleep(pause.max(failure.pause));
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// What the sender and the sink's thread both know.
#[derive(Debug, Default)]
struct Shared {
    name: String,
    /// How many events may wait.
    queue: usize,
    counts: Mutex<Counts>,
    sent: AtomicU64,
    filtered: AtomicU64,
    /// Lost, and not yet told in a gap.
    untold: Mutex<Missing>,
    changed: Condvar,
    reopen: AtomicBool,
}

#[derive(Debug, Default)]
struct Counts {
    written: u64,
    lost: u64,
    failing: bool,
    /// The last one, also after it was overcome: it tells why events were lost.
    error: Option<String>,
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sent, and neither written nor lost. With the counts locked, it can only be less in the next moment, or more by
    /// what is being sent.
    fn waiting(&self, counts: &Counts) -> u64 {
        self.sent.load(Ordering::Relaxed).saturating_sub(counts.written + counts.lost)
    }

    fn update(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts());
        self.changed.notify_all();
    }

    fn missing(&self, more: Missing) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        untold.events = untold.events.saturating_add(more.events);
        untold.answers = untold.answers.saturating_add(more.answers);
    }

    fn take_untold(&self) -> Missing {
        std::mem::take(&mut self.untold.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn overflow(&self) {
        self.update(|counts| {
            counts.lost += 1;
            let text = || format!("too slow: {} events were waiting", self.queue);
            counts.error.get_or_insert_with(text);
        });
    }

    fn succeeded(&self, written: usize) {
        self.update(|counts| {
            counts.written += written as u64;
            if std::mem::take(&mut counts.failing) {
                info!("sink {}: works again ({} events lost so far)", self.name, counts.lost);
            }
        });
    }

    fn failed(&self, written: usize, lost: usize, error: String) {
        self.update(|counts| {
            counts.written += written as u64;
            counts.lost += lost as u64;
            if !std::mem::replace(&mut counts.failing, true) {
                warn!("sink {}: {error}", self.name);
            }
            counts.error = Some(error);
        });
    }

    fn recall(&self, recalled: u64) {
        if recalled > 0 {
            self.update(|counts| {
                let recalled = recalled.min(counts.written);
                counts.written -= recalled;
                counts.lost += recalled;
            });
            // What was in them nobody knows any more.
            self.missing(Missing { events: recalled, answers: 0 });
        }
    }

    fn settle(&self, end_ns: u64) -> u64 {
        let left = Duration::from_nanos(end_ns.saturating_sub(clock::boot_ns()));
        let waiting = |counts: &mut Counts| self.waiting(counts) > 0;
        let ended = self.changed.wait_timeout_while(self.counts(), left, waiting);
        let (counts, _) = ended.unwrap_or_else(PoisonError::into_inner);
        self.waiting(&counts)
    }
}

#[cfg(test)]
mod tests;
