//! Answers to the control socket.

use std::collections::BTreeMap;

use enforcer_common::answer::Outcome;
use enforcer_common::belief::Doubt;
use enforcer_common::counter::Counter;
use enforcer_common::limits::ADDRESSES;
use enforcer_common::verdict::FOREVER;
use enforcer_common::{Addr, Entry, RuleId, Verdict};

use super::Daemon;
use super::start::Enforcement;
use crate::api::{
    self, Counters, Denied, DnsStatus, MapStatus, PolicyStatus, Reply, Request, ResolvedStatus, Status,
};
use crate::config::{DefaultVerdict, Mode};
use crate::engine::compile::Network;
use crate::engine::explain::Asked;
use crate::engine::record::Event;
use crate::engine::reload::Kernel as _;
use crate::engine::state::{Claimed, speaking};
use crate::sys::bpf::Hooks;
use crate::sys::canary::Canary;
use crate::sys::clock;
use crate::sys::literals::Literals;
use crate::sys::resolved::{Link, Monitor};

const SECOND: u64 = 1_000_000_000;

pub(super) fn reply(daemon: &Daemon, request: Request) -> Reply {
    match request {
        Request::Status => Reply::Status(Box::new(status(daemon))),
        Request::Denied => Reply::Denied(denied(daemon)),
        Request::Explain { what } => explain(daemon, &what),
        Request::Trial => Reply::Trial(daemon.trial()),
        // The daemon's loop answers these itself.
        Request::Events
        | Request::Reload
        | Request::Try { .. }
        | Request::Keep
        | Request::Undo
        | Request::Rehearse { .. } => Reply::Error("this is not asked for here".into()),
    }
}

/// What is enforced, in one line.
pub(super) fn headline(enforcement: &Enforcement, mode: Mode, policy: &PolicyStatus) -> String {
    let layer = layer(enforcement.hooks);
    if mode == Mode::Audit && enforcement.canary == Canary::Refused {
        return format!("AUDIT MODE by {layer}: nothing is refused");
    }
    match (&enforcement.canary, &policy.error, &policy.last_good) {
        (Canary::Refused, None, _) => format!("enforcing by {layer}"),
        (Canary::Refused, Some(_), None) => format!("enforcing by {layer}; the newest policies have errors"),
        (Canary::Refused, Some(_), Some(_)) => {
            format!("enforcing the last good policy by {layer}; the policies have errors")
        }
        (broken, ..) => format!("NOT ENFORCING: the canary was {broken}"),
    }
}

fn layer(hooks: Hooks) -> &'static str {
    match hooks {
        Hooks::Lsm => "lsm",
        Hooks::Cgroup => "cgroup",
        Hooks::Both => "both",
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Audit => "audit",
    }
}

fn default(verdict: DefaultVerdict) -> &'static str {
    match verdict {
        DefaultVerdict::Allow => "allow",
        DefaultVerdict::Deny => "deny",
    }
}

fn status(daemon: &Daemon) -> Status {
    let now = clock::boot_ns();
    let age = |since: u64| now.saturating_sub(since) / SECOND;
    let enforcement = &daemon.enforcement;
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_seconds: age(daemon.started),
        kernel: enforcement.kernel.clone(),
        enforcement: api::Enforcement {
            active: enforcement.canary == Canary::Refused,
            mode: mode(daemon.config.mode).into(),
            default: default(daemon.config.default).into(),
            layer: layer(enforcement.hooks).into(),
            reason: enforcement.reason.clone(),
            canary: enforcement.canary.to_string(),
            canary_age_seconds: age(daemon.canary_at),
        },
        policy: daemon.policies.status(),
        counters: counters(daemon),
        dns: dns(daemon),
        map: MapStatus {
            shared: daemon
                .installer
                .shared(now)
                .keys()
                .filter(|addr| daemon.state.is_spared(**addr, now))
                .count(),
            addresses: daemon.state.planner().installed().len(),
            capacity: ADDRESSES as usize,
            failed_inserts: daemon.installer.failed_inserts,
            adopted: daemon.installer.adopted,
            owed: daemon.state.planner().owed(),
            answered: daemon.installer.entered(),
            answered_capacity: enforcer_common::limits::ANSWERED as usize,
        },
        sinks: daemon.sinks.status(),
        warnings: Vec::new(),
    };
    status.warnings = warnings(&status, &enforcement.problems);
    if let Some(why) = daemon.policies.keeper.failed() {
        status.warnings.push(format!(
            "a start with errors in the policy files would not enforce the policy that is in force now: {why}"
        ));
    }
    let unflushed = daemon.unflushed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    status.warnings.extend(unflushed);
    if let (Some(_), (asked, all)) = (&daemon.literals, daemon.policies.literals())
        && asked.len() < all
    {
        status.warnings.push(format!(
            "resolve_literals = true, but of {all} names in rules only {} are asked for: put the others in a list",
            asked.len()
        ));
    }
    if let Some(trial) = daemon.trial() {
        status.warnings.push(format!(
            "{} is on trial for {} s more: `enforcer apply --keep` keeps it",
            trial.name, trial.seconds_left
        ));
    }
    status
}

fn counters(daemon: &Daemon) -> Counters {
    let count = |counter| daemon.installer.count(counter);
    Counters {
        connects: count(Counter::Connects),
        denied: count(Counter::Denied),
        audited: count(Counter::Audited),
        lost_events: count(Counter::LostEvents),
        lost_answers: count(Counter::LostAnswers),
        faults: count(Counter::FaultAddress),
        incomplete_events: count(Counter::FaultSocket) + count(Counter::FaultTask),
        uncopied_packets: count(Counter::FaultPacket),
        events: daemon.events,
        shared_passed: count(Counter::SharedPassed),
        packets_refused: count(Counter::PacketsRefused),
        connections_killed: daemon.killer.as_ref().map_or(0, |killer| killer.killed),
        elsewhere: daemon.blindness.connects,
        without_name: daemon.blindness.without_name,
        ignored: count(Counter::Ignored),
        repeated: count(Counter::Repeated),
        unaggregated: count(Counter::Unaggregated),
    }
}

fn dns(daemon: &Daemon) -> DnsStatus {
    let counts = daemon.state.dns_counts();
    let table = daemon.state.table();
    DnsStatus {
        answers: counts.answers + daemon.installer.count(Counter::AnswersRepeated),
        matched: daemon.installer.count(Counter::AnswersMatched),
        late: late(daemon),
        dropped: daemon.installer.count(Counter::AnswersDropped),
        over_quota: over_quota(daemon),
        over_quota_late: counts.over_quota,
        unbelieved: unbelieved(daemon),
        withheld: daemon.installer.count(Counter::AnswersWithheld),
        unparsed: counts.unparsed,
        truncated: counts.truncated,
        streams_lost: daemon.state.streams_lost(),
        bindings: table.len(),
        capacity: enforcer_common::limits::TABLE_BINDINGS,
        evicted: table.evicted,
        literals_unanswered: daemon.literals.as_ref().map_or(0, Literals::unanswered) as u64,
        refused_bindings: counts.refused,
        resolved: resolved(daemon),
    }
}

fn resolved(daemon: &Daemon) -> ResolvedStatus {
    let counts = daemon.state.dns_counts();
    let link = daemon.monitor.as_ref().map(Monitor::link);
    let (name, error) = match link {
        None => ("off", None),
        Some(Link::Absent) => ("absent", None),
        Some(Link::Asked) => ("connecting", None),
        Some(Link::Connected) => ("connected", None),
        Some(Link::Failed(why)) => ("failed", Some(why.clone())),
    };
    ResolvedStatus {
        link: name.into(),
        error,
        answers: counts.monitored,
        unread: counts.unmonitored,
        lost: daemon.monitor.as_ref().map_or(0, |monitor| monitor.lost),
    }
}

/// Answers that the kernel left to the daemon, by reason.
fn late(daemon: &Daemon) -> BTreeMap<String, u64> {
    let late = Outcome::ALL.into_iter().filter(|outcome| outcome.is_late());
    let counted = late.map(|outcome| (outcome_name(outcome).to_owned(), daemon.installer.outcome(outcome)));
    let counts = daemon.state.dns_counts();
    let others = [("late_globs", counts.late_globs), ("resolved_monitor", counts.late_monitored)];
    counted
        .chain(others.map(|(reason, count)| (reason.to_owned(), count)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Answers whose quota was used up, by whose it was.
fn over_quota(daemon: &Daemon) -> BTreeMap<String, u64> {
    let count = |counter| daemon.installer.count(counter);
    let all = [("name", count(Counter::AnswersOverName)), ("rule", count(Counter::AnswersOverRule))];
    all.into_iter().filter(|(_, count)| *count > 0).map(|(of, count)| (of.to_owned(), count)).collect()
}

/// Answers that were not believed, by reason.
fn unbelieved(daemon: &Daemon) -> BTreeMap<String, u64> {
    let counted = Doubt::ALL.map(|doubt| (doubt_name(doubt).to_owned(), daemon.installer.doubt(doubt)));
    let local = ("link_local_name".to_owned(), daemon.state.dns_counts().local);
    counted.into_iter().chain([local]).filter(|(_, count)| *count > 0).collect()
}

fn doubt_name(doubt: Doubt) -> &'static str {
    match doubt {
        Doubt::Unasked => "unasked",
        Doubt::Late => "overdue",
        Doubt::Replayed => "replayed",
        Doubt::NotOpened => "not_opened",
        Doubt::Foreign => "foreign_namespace",
        Doubt::Untrusted => "untrusted_server",
    }
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Decided => "decided",
        Outcome::NotAnAnswer => "not_an_answer",
        Outcome::Malformed => "malformed",
        Outcome::Long => "long",
        Outcome::Segmented => "segmented",
        Outcome::Crowded => "crowded",
        Outcome::OddName => "odd_name",
        Outcome::LongChain => "long_chain",
        Outcome::Disordered => "disordered",
        Outcome::NoTables => "no_tables",
        Outcome::Unread => "unread",
    }
}

/// Everything that opens a hole, in words.
fn warnings(status: &Status, problems: &[String]) -> Vec<String> {
    let mut warnings = problems.to_vec();
    let mut warn = |when: bool, text: String| warnings.extend(when.then_some(text));
    let Status { counters, dns, map, enforcement, .. } = status;
    warn(
        enforcement.mode == "audit",
        "mode = \"audit\": NOTHING IS REFUSED. What would be is reported with the verdict \"audit\""
            .to_owned(),
    );
    warn(
        counters.lost_answers > 0,
        format!(
            "{} DNS answers were lost because the ring was full: their addresses are not denied. \
             Lower the volume with events = \"denied\"",
            counters.lost_answers
        ),
    );
    warn(
        counters.lost_events > 0,
        format!(
            "{} events were lost because the ring was full. Verdicts are not affected",
            counters.lost_events
        ),
    );
    warn(
        dns.dropped > 0,
        format!(
            "{} DNS answers were not delivered because their addresses could not be denied: the map is full. \
             Remove patterns that match much",
            dns.dropped
        ),
    );
    for (of, count) in &dns.over_quota {
        let text = format!(
            "{count} DNS answers were withheld because a {of} brought more new addresses than addresses_per_{of} lets it: \
             `enforcer events` tells which (refused_binding)"
        );
        warn(true, text);
    }
    warn(
        dns.over_quota_late > 0,
        format!(
            "{} addresses are NOT denied: answers that the kernel left to the daemon brought more of them than their \
             quota lets them",
            dns.over_quota_late
        ),
    );
    warn(
        map.failed_inserts > 0,
        format!(
            "{} times an address could not be denied ({} of {} places are taken). Remove patterns that match much",
            map.failed_inserts, map.addresses, map.capacity
        ),
    );
    warn(
        map.owed > 0,
        format!(
            "{} addresses are NOT handled as the policy says, for lack of room or because of an error",
            map.owed
        ),
    );
    warn(
        counters.faults > 0,
        format!("{} connects passed because their address could not be read", counters.faults),
    );
    warn(
        status.policy.late_globs > 0,
        format!(
            "{} globs are too much for the kernel: the first connect after an answer that only they name can get \
             through. `enforcer check` names them",
            status.policy.late_globs
        ),
    );
    warn(
        map.answered * 10 > map.answered_capacity as u64 * 9,
        format!(
            "{} of {} places for fresh answers are taken: when all are, answers with denied names are not delivered. \
             Remove patterns that match much",
            map.answered, map.answered_capacity
        ),
    );
    warn(
        dns.resolved.unread > 0,
        format!(
            "{} answers of systemd-resolved could not be read: their addresses may not be denied",
            dns.resolved.unread
        ),
    );
    warn(
        dns.streams_lost > 0,
        format!("{} pieces of DNS over TCP were lost: their addresses may not be denied", dns.streams_lost),
    );
    warnings
}

fn explain(daemon: &Daemon, what: &str) -> Reply {
    let event = match what.strip_prefix("event:").map(|sequence| sequence.parse().ok()) {
        None => None,
        Some(sequence) => match sequence.and_then(|sequence| daemon.recent.find(sequence)) {
            Some(event) => Some(event),
            None => return Reply::Error(daemon.recent.lacks(what)),
        },
    };
    let destination =
        event.as_ref().and_then(|event| event.connect()).map(|connect| Asked::Address(connect.dst_ip));
    let asked = match destination.map_or_else(|| Asked::new(what), Ok) {
        Ok(asked) => asked,
        Err(error) => return Reply::Error(error),
    };
    let now = clock::boot_ns();
    match daemon.state.explain(&asked, now) {
        Some(mut explanation) => {
            let shared = daemon.installer.shared(now);
            for one in &mut explanation.addresses {
                let addr = Addr::from(one.address);
                let until = shared.get(&addr).filter(|_| daemon.state.is_spared(addr, now));
                one.shared_for_seconds = until.map(|until| until.saturating_sub(now) / SECOND);
            }
            if daemon.config.default == DefaultVerdict::Deny {
                explanation.deny_by_default();
            }
            Reply::Explained(Box::new(explanation), event.map(|event| Box::new(Event::clone(&event))))
        }
        None => Reply::Error("no policy could be loaded yet: enforcer status says why".into()),
    }
}

fn denied(daemon: &Daemon) -> Vec<Denied> {
    let now = clock::boot_ns();
    let rule_name = |rule: RuleId| {
        let name = daemon.state.rule_name(rule);
        name.map_or_else(|| format!("unknown rule {rule:08x}"), str::to_owned)
    };
    let conditions = |rule: RuleId| {
        let about = daemon.state.compiled().and_then(|compiled| compiled.rule(rule));
        about.and_then(|about| about.conditions.as_deref().map(str::to_owned))
    };
    let address = |claimed: Claimed| {
        let ip = std::net::IpAddr::from(claimed.addr);
        Denied {
            address: ip.to_string(),
            ip: Some(ip),
            names: claimed.names.iter().map(ToString::to_string).collect(),
            also_serves: claimed.also_serves,
            rule: rule_name(claimed.rule),
            verdict: verdict(claimed.verdict).into(),
            conditions: conditions(claimed.rule),
            expires_in_seconds: Some(claimed.until.saturating_sub(now) / SECOND),
        }
    };
    let mut networks: Vec<(&Network, &Entry)> = daemon.installer.networks().iter().collect();
    networks.sort_by_key(|(network, _)| **network);
    let table = daemon.installer.conditions();
    let network = |(network, entry): (&Network, &Entry)| {
        let rules = speaking(entry, table, FOREVER - 1);
        let denied = |(by, rule, _): (Verdict, RuleId, _)| Denied {
            address: network.to_string(),
            ip: None,
            names: Vec::new(),
            also_serves: Vec::new(),
            rule: rule_name(rule),
            verdict: verdict(by).into(),
            conditions: conditions(rule),
            expires_in_seconds: None,
        };
        rules.into_iter().map(denied).collect::<Vec<_>>()
    };
    networks.into_iter().flat_map(network).chain(daemon.state.claimed(now).into_iter().map(address)).collect()
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Audit => "audit",
    }
}
