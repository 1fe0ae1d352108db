//! From counters to text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::Metrics;
use crate::api::Status;

impl Metrics {
    /// Everything, as OpenMetrics text.
    pub(super) fn encode(&self, status: Status) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("enforcer");
        registry.register("rule_connects", "Reported connects that a rule decided", self.rules.clone());
        registry.register("events", "Events by kind", self.events.clone());
        let histograms = [
            ("handling", "From a connect to its event at the sinks", &self.handling),
            ("reload", "Loading the policies", &self.reload),
            ("established", "From a connect to its established TCP connection", &self.established),
        ];
        for (name, help, histogram) in histograms {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        registry.register_collector(Box::new(StatusCollector(status)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct StatusCollector(Status);

/// Labels of one value: name and text.
struct Labels<'a, const N: usize>([(&'static str, &'a str); N]);

impl<const N: usize> EncodeLabelSet for Labels<'_, N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

impl Collector for StatusCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        out.daemon(&self.0)?;
        out.connects(&self.0)?;
        out.dns(&self.0)?;
        out.map(&self.0)?;
        out.policy(&self.0)?;
        out.sinks(&self.0)
    }
}

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn daemon(&mut self, status: &Status) -> fmt::Result {
        let Status { version, kernel, enforcement, .. } = status;
        let labels = Labels([("version", version), ("kernel", kernel), ("layer", &enforcement.layer)]);
        self.gauges("info", "What runs here", [(labels, 1)])?;
        self.gauge("enforcing", "1: the last canary proved that denial works", enforcement.active.into())?;
        self.gauge("canary_age_seconds", "Since the last canary", enforcement.canary_age_seconds)?;
        self.gauge("uptime_seconds", "Since the daemon started", status.uptime_seconds)?;
        self.gauge(
            "warnings",
            "What is wrong or opens a hole, see enforcer status",
            status.warnings.len() as u64,
        )
    }

    fn connects(&mut self, status: &Status) -> fmt::Result {
        let counters = &status.counters;
        let allowed = counters.connects.saturating_sub(counters.denied + counters.audited);
        self.counters(
            "connects",
            "Connects seen by the kernel's hooks, whether reported or not",
            [("allow", allowed), ("deny", counters.denied), ("audit", counters.audited)]
                .map(|(verdict, count)| (Labels([("verdict", verdict)]), count)),
        )?;
        let help = "Reported connects to elsewhere: not to what is never denied";
        self.counter("elsewhere_connects", help, counters.elsewhere)?;
        let help = "Of these, those to addresses that no DNS answer named";
        self.counter("no_dns_connects", help, counters.without_name)?;
        self.counter(
            "lost_events",
            "Connect reports that the full ring could not take",
            counters.lost_events,
        )?;
        self.counter("lost_answers", "DNS answers that the full ring could not take", counters.lost_answers)?;
        let help = "Packets refused on their way out, which no hook had refused";
        self.counter("packets_refused", help, counters.packets_refused)?;
        let help = "Connects let through because their address is shared";
        self.counter("shared_passed", help, counters.shared_passed)?;
        let help = "Connections ended, which were open when their address became denied";
        self.counter("connections_killed", help, counters.connections_killed)?;
        self.counter(
            "faults",
            "Connects that passed because their address could not be read",
            counters.faults,
        )
    }

    fn dns(&mut self, status: &Status) -> fmt::Result {
        let dns = &status.dns;
        self.counter("dns_answers", "DNS answers seen by the daemon", dns.answers)?;
        self.counter("dns_matched", "Answers matched in the kernel before delivery", dns.matched)?;
        let late = dns.late.iter().map(|(reason, count)| (Labels([("reason", reason.as_str())]), *count));
        self.counters("dns_late", "Answers that the kernel left to the daemon", late)?;
        self.counter(
            "dns_dropped",
            "Answers not delivered: their addresses could not be denied",
            dns.dropped,
        )?;
        let doubts = dns.unbelieved.iter();
        let doubts = doubts.map(|(reason, count)| (Labels([("reason", reason.as_str())]), *count));
        self.counters("dns_unbelieved", "Answers that nobody asked for, or of servers not trusted", doubts)?;
        let help = "Of these, those with a denied name, which were not delivered";
        self.counter("dns_withheld", help, dns.withheld)?;
        let quotas = dns.over_quota.iter();
        let quotas = quotas.map(|(of, count)| (Labels([("quota", of.as_str())]), *count));
        let help = "Answers with more new addresses than their name or rule may bring, not delivered";
        self.counters("dns_over_quota", help, quotas)?;
        let help = "Addresses not denied for that reason, because the daemon decided late";
        self.counter("dns_over_quota_late", help, dns.over_quota_late)?;
        self.counter("dns_unparsed", "Answers that could not be understood", dns.unparsed)?;
        self.counter("dns_truncated", "Truncated answers", dns.truncated)?;
        self.counter("dns_streams_lost", "DNS over TCP given up", dns.streams_lost)?;
        self.counter("dns_evicted", "Bindings that made room before they ran out", dns.evicted)?;
        self.gauge("dns_bindings", "Names and addresses that the daemon knows", dns.bindings as u64)?;
        self.gauge("dns_bindings_capacity", "How many it can know", dns.capacity as u64)?;
        self.counter("resolved_answers", "Answers that systemd-resolved told", dns.resolved.answers)?;
        let help = "Those that could not be understood: their addresses may not be denied";
        self.counter("resolved_unread", help, dns.resolved.unread)?;
        self.counter("resolved_lost", "Times that it hung up", dns.resolved.lost)?;
        let help = "Its answers are heard";
        self.gauge("resolved_connected", help, u64::from(dns.resolved.link == "connected"))?;
        let help = "Denied names that led to protected addresses";
        self.gauge("dns_refused_bindings", help, dns.refused_bindings)
    }

    fn map(&mut self, status: &Status) -> fmt::Result {
        let map = &status.map;
        self.gauge("denied_addresses", "Addresses in the kernel's map", map.addresses as u64)?;
        self.gauge("denied_addresses_capacity", "How many it can hold", map.capacity as u64)?;
        self.gauge("answered_addresses", "Addresses that the packet path entered", map.answered)?;
        let help = "How many it can enter; when full, answers are withheld";
        self.gauge("answered_addresses_capacity", help, map.answered_capacity as u64)?;
        self.gauge("owed_addresses", "Addresses not handled as the policy says", map.owed as u64)?;
        self.counter("failed_inserts", "Addresses that could not be denied", map.failed_inserts)
    }

    fn policy(&mut self, status: &Status) -> fmt::Result {
        let policy = &status.policy;
        self.counters(
            "policy_loads",
            "Loads of the policy files",
            [("ok", policy.loads), ("error", policy.failed_loads)]
                .map(|(result, count)| (Labels([("result", result)]), count)),
        )?;
        self.gauge(
            "policy_error",
            "1: the newest files have errors, older rules are in force",
            policy.error.is_some().into(),
        )?;
        self.gauge(
            "policy_last_good",
            "1: the files had errors at the start, the copy of the last good policy is in force",
            policy.last_good.is_some().into(),
        )?;
        self.gauge("policy_age_seconds", "Since the policies were loaded", policy.loaded_seconds_ago)?;
        self.gauge("policy_rules", "Rules in force", policy.rules as u64)?;
        self.gauge("policy_patterns", "Host patterns in force", policy.patterns as u64)?;
        self.gauge("policy_networks", "Networks in force", policy.networks as u64)
    }

    fn sinks(&mut self, status: &Status) -> fmt::Result {
        let label = |sink: usize| Labels([("sink", status.sinks[sink].name.as_str())]);
        let each = |get: fn(&crate::api::SinkStatus) -> u64| {
            status.sinks.iter().enumerate().map(move |(n, sink)| (label(n), get(sink))).collect::<Vec<_>>()
        };
        self.counters("sink_written", "Events written", each(|sink| sink.written))?;
        self.counters("sink_lost", "Events that the sink could not take", each(|sink| sink.lost))?;
        self.counters("sink_filtered", "Events that the sink's filter kept out", each(|sink| sink.filtered))?;
        self.gauges("sink_waiting", "Events in the sink's queue", each(|sink| sink.waiting))?;
        let failing = |sink: &crate::api::SinkStatus| {
            sink.error.as_ref().is_some_and(|error| !error.starts_with("recovered")).into()
        };
        self.gauges("sink_failing", "1: the last write failed", each(failing))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l, N>, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        values.into_iter().try_for_each(|(labels, value)| {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l, N>, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values.into_iter().try_for_each(|(labels, value)| metric.encode_family(&labels)?.encode_gauge(&value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::api::SinkStatus;
    use crate::engine::format::samples;
    use crate::engine::record::Event;

    fn status() -> Status {
        let mut status = Status { version: "0.1.0".into(), ..Status::default() };
        status.counters.connects = 10;
        status.counters.denied = 3;
        status.dns.late.insert("segmented".into(), 4);
        status.dns.unbelieved.insert("unasked".into(), 5);
        status.dns.over_quota.insert("name".into(), 6);
        status.sinks.push(SinkStatus { name: "json \"x\\\n".into(), lost: 5, ..SinkStatus::default() });
        status
    }

    fn text(metrics: &Metrics) -> String {
        metrics.encode(status()).unwrap()
    }

    #[test]
    fn the_text_holds_what_was_counted() {
        let metrics = Metrics::default();
        samples::all().iter().for_each(|event| metrics.event(event, Some(5_000)));
        metrics.reload(2_000_000);
        let text = text(&metrics);
        for line in [
            "# TYPE enforcer_connects counter",
            "enforcer_connects_total{verdict=\"allow\"} 7",
            "enforcer_connects_total{verdict=\"deny\"} 3",
            "enforcer_rule_connects_total{rule=\"no-trackers\",verdict=\"deny\"} 1",
            "enforcer_events_total{kind=\"gap\"} 1",
            "enforcer_dns_late_total{reason=\"segmented\"} 4",
            "enforcer_dns_unbelieved_total{reason=\"unasked\"} 5",
            "enforcer_dns_over_quota_total{quota=\"name\"} 6",
            "enforcer_sink_lost_total{sink=\"json \\\"x\\\\\\n\"} 5",
            "enforcer_handling_seconds_bucket{le=\"0.00001\"} 8",
            "enforcer_reload_seconds_count 1",
            "enforcer_enforcing 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_number_of_rules_is_bounded_and_none_is_lost() {
        let metrics = Metrics::default();
        let connects = 2 * super::super::MAX_RULES as u64;
        for n in 0..connects {
            let rule = Some(format!("rule-{n}"));
            metrics.event(
                &Event::TcpConnect(crate::engine::record::Connect { rule, ..samples::connect() }),
                None,
            );
        }
        let text = text(&metrics);
        let lines: Vec<_> =
            text.lines().filter(|line| line.starts_with("enforcer_rule_connects_total{")).collect();
        assert_eq!(lines.len(), super::super::MAX_RULES + 1);
        let sum: u64 =
            lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(sum, connects);
    }

    /// Names of metrics in an expression.
    fn used(text: &str) -> HashSet<String> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.split(|c| !word(c)).filter(|word| word.starts_with("enforcer_")).map(str::to_owned).collect()
    }

    #[test]
    fn dashboard_and_alerts_use_only_metrics_that_exist() {
        let metrics = Metrics::default();
        samples::all().iter().for_each(|event| metrics.event(event, Some(5_000)));
        let text = text(&metrics);
        let exist: HashSet<_> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next().map(str::to_owned))
            .collect();
        let dashboard = include_str!("../../../../packaging/grafana-dashboard.json");
        serde_json::from_str::<serde_json::Value>(dashboard).unwrap();
        let alerts = include_str!("../../../../packaging/prometheus-alerts.yml");
        for (file, text) in [("dashboard", dashboard), ("alerts", alerts)] {
            let used = used(text);
            assert!(used.len() >= 10, "{file}: {used:?}");
            let unknown: Vec<_> = used.difference(&exist).collect();
            assert!(unknown.is_empty(), "the {file} uses {unknown:?}, of {exist:?}");
        }
    }
}
