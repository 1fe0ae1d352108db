//! The daemon's own log (not the events): set-up, and a limit for warnings that could come in floods.

use std::sync::Mutex;
use std::time::Duration;

use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt, registry};

/// Logs to the journal under systemd, else to stderr. `ENFORCER_LOG` sets the level (`info` without it; the
/// syntax is tracing-subscriber's, such as `debug` or `enforcer::sys=trace`). Call once.
pub fn init() {
    let filter = EnvFilter::builder()
        .with_env_var("ENFORCER_LOG")
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let journal = if connected_to_journal() { tracing_journald::layer().ok() } else { None };
    let stderr = journal.is_none().then(|| {
        let ansi = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
        fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false)
    });
    let journal = journal.map(|layer| layer.with_syslog_identifier("enforcer".into()));
    // Fails only when a subscriber is set already, as in tests: that one then serves.
    let _ = registry().with(filter).with(journal).with(stderr).try_init();
}

/// Whether stdout or stderr really is the journal stream that systemd announced: the variable alone is
/// inherited by children whose output goes elsewhere.
pub fn connected_to_journal() -> bool {
    let Ok(announced) = std::env::var("JOURNAL_STREAM") else { return false };
    let is_announced = |stat: rustix::fs::Stat| format!("{}:{}", stat.st_dev, stat.st_ino) == announced;
    rustix::fs::fstat(std::io::stderr()).is_ok_and(is_announced)
        || rustix::fs::fstat(std::io::stdout()).is_ok_and(is_announced)
}

/// Lets one message through per interval and counts those it held back.
#[derive(Debug)]
pub struct RateLimit {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next_ns: u64,
    held_back: u64,
}

impl RateLimit {
    pub const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(State { next_ns: 0, held_back: 0 }) }
    }

    /// `Some(n)`: log now, and say that `n` like it were held back since the last one. `None`: do not.
    pub fn pass(&self, now_ns: u64) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if now_ns < state.next_ns {
            state.held_back += 1;
            return None;
        }
        state.next_ns = now_ns.saturating_add(u64::try_from(self.interval.as_nanos()).unwrap_or(u64::MAX));
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_an_interval_and_none_is_forgotten() {
        let limit = RateLimit::new(Duration::from_nanos(10));
        assert_eq!(limit.pass(5), Some(0));
        assert_eq!(limit.pass(6), None);
        assert_eq!(limit.pass(14), None);
        assert_eq!(limit.pass(15), Some(2));
        assert_eq!(limit.pass(30), Some(0));
    }

    #[test]
    fn an_inherited_journal_stream_is_not_believed() {
        // The test runner's stdout is a pipe or a terminal, never the stream that the variable names.
        assert!(!connected_to_journal());
    }
}
