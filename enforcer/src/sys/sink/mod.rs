//! Where events go. Each sink has its own thread and its own bounded queue, so that a slow or dead one
//! delays neither the daemon nor the others; what it misses is counted: written + lost + queued == sent.

mod journald;
mod lines;
mod syslog;
pub mod text;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use self::lines::Lines;
use crate::api::SinkStatus;
use crate::config::{SinkConfig, Target};
use crate::engine::record::Event;
use crate::sys::clock;

/// Events that wait for one sink: some seconds of a busy host, some megabytes.
const QUEUE: usize = 8192;
const BATCH: usize = 256;
/// Before a failed write is tried again; doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The running sinks. Dropping them ends each thread after what is queued.
#[derive(Debug)]
pub struct Sinks(Vec<Sink>);

#[derive(Debug)]
struct Sink {
    name: String,
    queue: SyncSender<Arc<Event>>,
    shared: Arc<Shared>,
}

impl Sinks {
    /// Starts a thread for each sink. A sink that cannot be opened is not an error here: it is tried again
    /// with each event and shows in the status.
    pub fn start(configs: &[SinkConfig]) -> Result<Self, String> {
        configs.iter().map(Sink::start).collect::<Result<_, _>>().map(Self)
    }

    /// Never blocks: a sink whose queue is full loses the event and counts it.
    pub fn send(&self, event: Arc<Event>) {
        for sink in &self.0 {
            sink.shared.update(|counts| counts.sent += 1);
            if sink.queue.try_send(Arc::clone(&event)).is_err() {
                sink.shared.overflow();
            }
        }
    }

    pub fn status(&self) -> Vec<SinkStatus> {
        self.0.iter().map(Sink::status).collect()
    }

    /// Waits until everything sent is written or lost, at most so long. Returns how many events wait still.
    pub fn flush(&self, deadline: Duration) -> u64 {
        let end = clock::boot_ns().saturating_add(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX));
        self.0.iter().map(|sink| sink.shared.settle(end)).sum()
    }

    /// Opens files anew before the next event (after logrotate has moved them).
    pub fn reopen(&self) {
        for sink in &self.0 {
            sink.shared.reopen.store(true, Ordering::Relaxed);
        }
    }
}

impl Sink {
    fn start(config: &SinkConfig) -> Result<Self, String> {
        let name = name(config);
        let (queue, events) = sync_channel(QUEUE);
        let shared = Arc::new(Shared { name: name.clone(), ..Shared::default() });
        let (output, worker) = (output(config), Arc::clone(&shared));
        thread::Builder::new()
            .name("sink".into())
            .spawn(move || work(&events, output, &worker))
            .map_err(|error| format!("cannot start a thread for the sink {name}: {error}"))?;
        Ok(Self { name, queue, shared })
    }

    fn status(&self) -> SinkStatus {
        let counts = self.shared.counts();
        let error = counts.error.as_ref().map(|error| match counts.failing {
            true => error.clone(),
            false => format!("recovered from: {error}"),
        });
        SinkStatus { name: self.name.clone(), written: counts.written, lost: counts.lost, error }
    }
}

fn name(config: &SinkConfig) -> String {
    let target = |target: &Target| match target {
        Target::Stdout => "stdout".to_owned(),
        Target::File(path) => path.display().to_string(),
    };
    match config {
        SinkConfig::Json(to) => format!("json {}", target(to)),
        SinkConfig::Text(to) => format!("text {}", target(to)),
        SinkConfig::Syslog { socket, .. } => format!("syslog {}", socket.display()),
        SinkConfig::Journald => "journald".to_owned(),
    }
}

fn output(config: &SinkConfig) -> Box<dyn Output> {
    match config {
        SinkConfig::Json(target) => Box::new(Lines::json(target.clone())),
        SinkConfig::Text(target) => Box::new(Lines::text(target.clone())),
        SinkConfig::Syslog { facility, socket } => Box::new(syslog::Syslog::new(*facility, socket.clone())),
        SinkConfig::Journald => Box::new(journald::Journald::default()),
    }
}

/// What a sink does with events. Called on the sink's own thread only, so it may block.
trait Output: Send {
    fn write(&mut self, events: &[Arc<Event>]) -> Result<(), Failure>;
    fn reopen(&mut self) {}
}

struct Failure {
    /// So many events, from the first, were written before it failed.
    written: usize,
    error: String,
    /// Try the others again, as the receiver may come back; else they are lost.
    retry: bool,
}

fn work(events: &Receiver<Arc<Event>>, mut output: Box<dyn Output>, shared: &Shared) {
    while let Ok(first) = events.recv() {
        let batch: Vec<_> = [first].into_iter().chain(events.try_iter().take(BATCH - 1)).collect();
        if shared.reopen.swap(false, Ordering::Relaxed) {
            output.reopen();
        }
        deliver(&batch, output.as_mut(), shared);
    }
}

fn deliver(mut batch: &[Arc<Event>], output: &mut dyn Output, shared: &Shared) {
    let mut pause = SHORTEST_PAUSE;
    while !batch.is_empty() {
        let Err(failure) = output.write(batch) else {
            return shared.succeeded(batch.len());
        };
        batch = &batch[failure.written..];
        let lost = if failure.retry { 0 } else { batch.len() };
        shared.failed(failure.written, lost, failure.error);
        if !failure.retry {
            return;
        }
        thread::sleep(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// What the sender and the sink's thread both know.
#[derive(Debug, Default)]
struct Shared {
    name: String,
    counts: Mutex<Counts>,
    changed: Condvar,
    reopen: AtomicBool,
}

#[derive(Debug, Default)]
struct Counts {
    sent: u64,
    written: u64,
    lost: u64,
    failing: bool,
    /// The last one, also after it was overcome: it tells why events were lost.
    error: Option<String>,
}

impl Counts {
    fn waiting(&self) -> u64 {
        self.sent - self.written - self.lost
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts());
        self.changed.notify_all();
    }

    fn overflow(&self) {
        self.update(|counts| {
            counts.lost += 1;
            let text = || format!("too slow: {QUEUE} events were waiting");
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

    fn settle(&self, end_ns: u64) -> u64 {
        let left = Duration::from_nanos(end_ns.saturating_sub(clock::boot_ns()));
        let waiting = self.changed.wait_timeout_while(self.counts(), left, |counts| counts.waiting() > 0);
        waiting.unwrap_or_else(PoisonError::into_inner).0.waiting()
    }
}

#[cfg(test)]
mod tests;
