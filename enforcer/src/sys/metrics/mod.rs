//! Counters and latencies for Prometheus and its kind, in the OpenMetrics text format. Off unless asked for.
//!
//! The labels have few values whatever happens: rules are the administrator's (and counted one by one up to a limit),
//! names and addresses, which anybody can make up, are no labels.

mod encode;
mod serve;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::engine::record::Event;

pub use serve::serve;

/// Rules that are counted one by one; the connects of all others are counted together, as `other`.
const MAX_RULES: usize = 500;

/// What is counted as it happens. The rest is asked for with each scrape.
#[derive(Debug)]
pub struct Metrics {
    rules: Family<RuleLabels, Counter>,
    known_rules: AtomicUsize,
    /// Held while a rule is met for the first time.
    adding: Mutex<()>,
    events: Family<KindLabels, Counter>,
    handling: Histogram,
    reload: Histogram,
    established: Histogram,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RuleLabels {
    rule: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            rules: Family::default(),
            known_rules: AtomicUsize::new(0),
            adding: Mutex::new(()),
            events: Family::default(),
            handling: Histogram::new(exponential_buckets(0.000_01, 4.0, 10)), // 10 us to 2.6 s
            reload: Histogram::new(exponential_buckets(0.001, 4.0, 8)),       // 1 ms to 16 s
            established: Histogram::new(exponential_buckets(0.000_1, 4.0, 9)), // 0.1 ms to 6.5 s
        }
    }
}

impl Metrics {
    /// An event happened, and was handed to the sinks so long after the kernel saw it.
    pub fn event(&self, event: &Event, handled_after_ns: Option<u64>) {
        self.events.get_or_create(&KindLabels { kind: event.kind() }).inc();
        if let Some(after) = handled_after_ns {
            self.handling.observe(seconds(after));
        }
        let Some(connect) = event.connect() else { return };
        if let Some(latency) = connect.latency_ns {
            self.established.observe(seconds(latency));
        }
        if let Some(rule) = &connect.rule {
            let labels = RuleLabels { rule: rule.clone(), verdict: connect.verdict.name() };
            self.rule(labels).inc_by(connect.count);
        }
    }

    /// The policies were loaded, which took so long.
    pub fn reload(&self, took_ns: u64) {
        self.reload.observe(seconds(took_ns));
    }

    fn rule(&self, labels: RuleLabels) -> Counter {
        if let Some(counter) = self.rules.get(&labels) {
            return counter.clone();
        }
        let _adding = self.adding.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = self.rules.get(&labels).is_some();
        if known || self.known_rules.load(Ordering::Relaxed) < MAX_RULES {
            self.known_rules.fetch_add(usize::from(!known), Ordering::Relaxed);
            return self.rules.get_or_create(&labels).clone();
        }
        self.rules.get_or_create(&RuleLabels { rule: "other".into(), ..labels }).clone()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a latency needs no more than 52 bits")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
