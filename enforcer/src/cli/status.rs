//! `enforcer status`

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::Path;
use std::time::Duration;

use super::client::{Client, Connection, strange};
use super::{BAD, Exit, Failure, GOOD, WARN, print, print_json};
use crate::api::{Enforcement, MapStatus, PolicyStatus, Reply, Request, ResolvedStatus, SinkStatus, Status};

/// What is really enforced now, what is wrong, and what was done so far
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
}

/// Exits with "no" when denial is not proven.
pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let Reply::Status(status) = Client::connect(&args.connection, config)?.ask(Request::Status)? else {
        return Err(strange("no status"));
    };
    if args.connection.json {
        print_json(&status)?;
    } else {
        print(&Screen(&status).to_string())?;
    }
    Ok(if status.enforcement.active { Exit::Yes } else { Exit::No })
}

/// The whole answer for people: first what counts most.
struct Screen<'a>(&'a Status);

impl Display for Screen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status { enforcement, policy, counters, dns, map, .. } = self.0;
        headline(f, enforcement)?;
        policy_error(f, policy)?;
        for warning in &self.0.warnings {
            writeln!(f, "{WARN}warning:{WARN:#} {warning}")?;
        }
        writeln!(f)?;
        policy_lines(f, policy)?;
        writeln!(
            f,
            "connects  {} seen, {} denied, {} audited{}",
            counters.connects,
            counters.denied,
            counters.audited,
            bad(&[
                (counters.lost_events, "reports lost"),
                (counters.incomplete_events, "reports incomplete"),
                (counters.faults, "let pass unread"),
                (counters.packets_refused, "packets refused on their way out"),
                (counters.connections_killed, "connections killed"),
            ])
        )?;
        if counters.shared_passed > 0 {
            let passed = counters.shared_passed;
            writeln!(
                f,
                "          {WARN}{passed} let through{WARN:#}: other names use the address, and shared = \"allow\""
            )?;
        }
        if counters.elsewhere > 0 {
            let (all, blind) = (counters.elsewhere, counters.without_name);
            let share = blind.saturating_mul(100) / all;
            writeln!(
                f,
                "blind     {blind} of {all} reported connects ({share} %) to addresses that no DNS answer named"
            )?;
        }
        writeln!(
            f,
            "dns       {} answers, {} matched before delivery, {} of {} bindings{}",
            dns.answers,
            dns.matched,
            dns.bindings,
            dns.capacity,
            bad(&[
                (counters.lost_answers, "answers lost"),
                (counters.uncopied_packets, "not copied"),
                (dns.dropped, "not delivered"),
                (dns.withheld, "withheld"),
                (dns.over_quota_late, "addresses over their quota NOT denied"),
                (dns.unparsed, "not understood"),
                (dns.streams_lost, "TCP streams lost"),
                (dns.literals_unanswered, "names of rules not answered yet"),
                (dns.evicted, "bindings evicted early"),
                (dns.refused_bindings, "denied names with protected addresses"),
            ])
        )?;
        reasons_line(f, "decided late", &dns.late)?;
        reasons_line(f, "not believed", &dns.unbelieved)?;
        reasons_line(f, "over the quota of their", &dns.over_quota)?;
        resolved_line(f, &dns.resolved)?;
        map_line(f, map)?;
        self.0.sinks.iter().try_for_each(|sink| sink_line(f, sink))?;
        let Status { version, pid, kernel, uptime_seconds, .. } = self.0;
        write!(f, "daemon    enforcer {version}, pid {pid}, up {}, kernel {kernel}", span(*uptime_seconds))
    }
}

fn headline(f: &mut fmt::Formatter<'_>, enforcement: &Enforcement) -> fmt::Result {
    let layer = match enforcement.layer.as_str() {
        "lsm" => "LSM",
        "cgroup" => "cgroup hooks",
        "both" => "LSM and cgroup hooks",
        other => other,
    };
    if enforcement.active {
        let proven = ago(enforcement.canary_age_seconds);
        if enforcement.mode == "audit" {
            writeln!(
                f,
                "{BAD}AUDIT MODE, nothing is refused:{BAD:#} {layer}, which a canary proved {proven}"
            )?;
        } else {
            writeln!(f, "{GOOD}enforcing:{GOOD:#} {layer}, proven by the canary {proven}")?;
        }
        if enforcement.default == "deny" {
            writeln!(f, "{WARN}default:{WARN:#} what no rule allows is denied")?;
        }
        if let Some(reason) = &enforcement.reason {
            writeln!(f, "{WARN}not by LSM:{WARN:#} {reason}")?;
        }
        return Ok(());
    }
    let canary = format!("the canary: {}", enforcement.canary);
    let why: Vec<_> = enforcement.reason.iter().chain([&canary]).map(String::as_str).collect();
    writeln!(f, "{BAD}NOT ENFORCING:{BAD:#} {}", why.join("; "))
}

/// An old policy that still stands looks like a loaded one: say it loudly, with what `check` would say.
fn policy_error(f: &mut fmt::Formatter<'_>, policy: &PolicyStatus) -> fmt::Result {
    let Some(error) = &policy.error else { return Ok(()) };
    let consequence = match (&policy.last_good, policy.loads) {
        (Some(saved), _) => format!("the last good policy, put in force at {saved}, is enforced"),
        (None, 0) => "no rule of them is in force, only what a daemon before this one left".to_owned(),
        (None, _) => "the policy from before them is in force".to_owned(),
    };
    writeln!(f, "{BAD}policy:{BAD:#} the files have errors; {consequence}")?;
    error.lines().try_for_each(|line| writeln!(f, "  {line}"))
}

fn policy_lines(f: &mut fmt::Formatter<'_>, policy: &PolicyStatus) -> fmt::Result {
    let PolicyStatus { files, rules, patterns, networks, .. } = policy;
    let skipped = bad(&[(policy.skipped_lines, "lines of lists skipped")]);
    write!(f, "policy    {rules} rules ({patterns} host patterns, {networks} networks)")?;
    if policy.conditional > 0 {
        let (conditional, most) = (policy.conditional, policy.conditional_capacity);
        write!(f, ", {conditional} of at most {most} with conditions")?;
    }
    writeln!(f)?;
    let (loaded, took) = (ago(policy.loaded_seconds_ago), policy.load_milliseconds);
    let built_in: String = policy.built_in.iter().map(|file| format!(" and {file}")).collect();
    writeln!(
        f,
        "          of {files} files in {}{built_in}, loaded {loaded} in {took} ms{skipped}",
        policy.directory
    )?;
    let late = bad(&[(policy.late_globs as u64, "globs matched late")]);
    let PolicyStatus { names, globs, states, .. } = policy;
    writeln!(f, "kernel    {names} names, {globs} globs in {states} states{late}")
}

/// Why answers were left to the daemon, or not believed; the most frequent reason first.
fn reasons_line(f: &mut fmt::Formatter<'_>, what: &str, counts: &BTreeMap<String, u64>) -> fmt::Result {
    let mut reasons: Vec<_> =
        counts.iter().map(|(reason, count)| (*count, reason.replace('_', " "))).collect();
    if reasons.is_empty() {
        return Ok(());
    }
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.0));
    let all: u64 = reasons.iter().map(|(count, _)| count).sum();
    let reasons: Vec<_> = reasons.iter().map(|(count, reason)| format!("{count} {reason}")).collect();
    writeln!(f, "          {WARN}{all} {what}{WARN:#}: {}", reasons.join(", "))
}

/// Whether systemd-resolved tells its answers.
fn resolved_line(f: &mut fmt::Formatter<'_>, resolved: &ResolvedStatus) -> fmt::Result {
    let ResolvedStatus { link, error, answers, unread, lost } = resolved;
    match link.as_str() {
        // Older daemons do not listen.
        "" | "absent" if *answers == 0 && *lost == 0 => return Ok(()),
        "connected" => write!(f, "resolved  connected, {answers} answers told")?,
        "failed" => {
            let why = error.as_deref().unwrap_or_default();
            write!(f, "resolved  {WARN}NOT heard{WARN:#}: {why}; {answers} answers told")?;
        }
        other => write!(f, "resolved  {other}, {answers} answers told")?,
    }
    writeln!(f, "{}", bad(&[(*unread, "not understood"), (*lost, "times lost")]))
}

fn map_line(f: &mut fmt::Formatter<'_>, map: &MapStatus) -> fmt::Result {
    let holes = bad(&[(map.failed_inserts, "could NOT be denied")]);
    write!(f, "denied    {} of at most {} addresses{holes}", map.addresses, map.capacity)?;
    if map.answered > 0 {
        write!(f, ", {} of {} fresh", map.answered, map.answered_capacity)?;
    }
    if map.adopted > 0 {
        write!(f, ", {} taken over from the daemon before", map.adopted)?;
    }
    if map.shared > 0 {
        write!(f, ", {WARN}{} shared and let through{WARN:#}", map.shared)?;
    }
    writeln!(f)
}

fn sink_line(f: &mut fmt::Formatter<'_>, sink: &SinkStatus) -> fmt::Result {
    let SinkStatus { name, written, lost, waiting, filtered, error } = sink;
    write!(f, "sink      {name}: {written} written")?;
    for (count, what) in [(waiting, "waiting"), (filtered, "left out by its filter")] {
        if *count > 0 {
            write!(f, ", {count} {what}")?;
        }
    }
    write!(f, "{}", bad(&[(*lost, "lost")]))?;
    if let Some(error) = error {
        write!(f, " {WARN}({error}){WARN:#}")?;
    }
    writeln!(f)
}

/// Those that are not zero, marked.
fn bad(counts: &[(u64, &str)]) -> String {
    let some = counts.iter().filter(|(count, _)| *count > 0);
    some.map(|(count, what)| format!(", {WARN}{count} {what}{WARN:#}")).collect()
}

fn ago(seconds: u64) -> String {
    format!("{} ago", span(seconds))
}

/// The two largest units: `2days 3h`.
fn span(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Counters, DnsStatus};

    fn plain(status: &Status) -> String {
        anstream::adapter::strip_str(&Screen(status).to_string()).to_string()
    }

    fn healthy() -> Status {
        Status {
            version: "0.1.0".into(),
            pid: 7,
            uptime_seconds: 183_845,
            kernel: "6.1.0".into(),
            enforcement: Enforcement {
                active: true,
                mode: "enforce".into(),
                default: "allow".into(),
                layer: "lsm".into(),
                reason: None,
                canary: "refused".into(),
                canary_age_seconds: 12,
            },
            policy: PolicyStatus {
                directory: "/etc/enforcer/policies.d".into(),
                files: 2,
                rules: 3,
                patterns: 40,
                names: 38,
                globs: 2,
                states: 17,
                networks: 5,
                loaded_seconds_ago: 61,
                load_milliseconds: 3,
                loads: 1,
                ..PolicyStatus::default()
            },
            counters: Counters { connects: 100, denied: 9, audited: 1, ..Counters::default() },
            dns: DnsStatus { answers: 50, bindings: 60, capacity: 1000, ..DnsStatus::default() },
            map: MapStatus { addresses: 8, capacity: 65536, ..MapStatus::default() },
            sinks: vec![SinkStatus { name: "journald".into(), written: 100, ..SinkStatus::default() }],
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_healthy_daemon_fits_one_short_screen() {
        let wanted = "\
enforcing: LSM, proven by the canary 12s ago

policy    3 rules (40 host patterns, 5 networks)
          of 2 files in /etc/enforcer/policies.d, loaded 1m 1s ago in 3 ms
kernel    38 names, 2 globs in 17 states
connects  100 seen, 9 denied, 1 audited
dns       50 answers, 0 matched before delivery, 60 of 1000 bindings
denied    8 of at most 65536 addresses
sink      journald: 100 written
daemon    enforcer 0.1.0, pid 7, up 2days 3h, kernel 6.1.0";
        assert_eq!(plain(&healthy()), wanted);
    }

    #[test]
    fn what_is_wrong_comes_first() {
        let mut status = healthy();
        status.enforcement.active = false;
        status.enforcement.reason = Some("bpf is not among the LSMs".into());
        status.enforcement.canary = "NOT refused".into();
        status.policy.error = Some("error: a.toml:1:1: bad\n  = write good".into());
        status.warnings = vec!["do this".into()];
        let text = plain(&status);
        let wanted = "\
NOT ENFORCING: bpf is not among the LSMs; the canary: NOT refused
policy: the files have errors; the policy from before them is in force
  error: a.toml:1:1: bad
    = write good
warning: do this
";
        assert!(text.starts_with(wanted), "{text}");
    }

    #[test]
    fn what_is_enforced_in_place_of_broken_files_is_told() {
        let mut status = healthy();
        status.policy.error = Some("error: bad".into());
        status.policy.loads = 0;
        assert!(plain(&status).contains("\npolicy: the files have errors; no rule of them is in force, "));
        status.policy.last_good = Some("2026-11-27T13:00:00Z".into());
        let wanted = "\npolicy: the files have errors; the last good policy, put in force at 2026-11-27T13:00:00Z, is enforced\n";
        assert!(plain(&status).contains(wanted), "{}", plain(&status));
    }

    #[test]
    fn the_weaker_layer_and_every_loss_are_shown() {
        let mut status = healthy();
        status.enforcement.layer = "cgroup".into();
        status.enforcement.reason = Some("no bpf".into());
        status.counters.lost_events = 3;
        status.counters.faults = 4;
        status.counters.packets_refused = 12;
        status.counters.incomplete_events = 7;
        status.dns.late = [("odd_name".to_owned(), 2), ("segmented".to_owned(), 9)].into();
        status.dns.unbelieved = [("unasked".to_owned(), 3)].into();
        status.dns.withheld = 2;
        status.dns.literals_unanswered = 4;
        status.dns.resolved =
            ResolvedStatus { link: "connected".into(), answers: 5, unread: 1, lost: 2, error: None };
        status.policy.late_globs = 1;
        status.policy.conditional = 3;
        status.policy.conditional_capacity = 256;
        status.map.answered = 8;
        status.map.answered_capacity = 10;
        status.map.failed_inserts = 5;
        (status.counters.elsewhere, status.counters.without_name) = (200, 31);
        status.policy.built_in = vec!["built-in/encrypted-dns.toml".into()];
        status.sinks[0].lost = 6;
        status.sinks[0].waiting = 7;
        status.sinks[0].filtered = 8;
        status.sinks[0].error = Some("No space left".into());
        let text = plain(&status);
        for wanted in [
            "enforcing: cgroup hooks, proven",
            "not by LSM: no bpf",
            ", 3 reports lost, 7 reports incomplete, 4 let pass unread, 12 packets refused on their way out\n",
            "\n          11 decided late: 9 segmented, 2 odd name\n",
            "\n          3 not believed: 3 unasked\n",
            "\nresolved  connected, 5 answers told, 1 not understood, 2 times lost\n",
            ", 2 withheld, 4 names of rules not answered yet",
            "5 networks), 3 of at most 256 with conditions\n",
            "in 17 states, 1 globs matched late\n",
            " files in /etc/enforcer/policies.d and built-in/encrypted-dns.toml, loaded ",
            "\nblind     31 of 200 reported connects (15 %) to addresses that no DNS answer named\n",
            ", 8 of 10 fresh",
            ", 5 could NOT be denied",
            "written, 7 waiting, 8 left out by its filter, 6 lost (No space left)",
        ] {
            assert!(text.contains(wanted), "{wanted}\n not in\n{text}");
        }
    }
}
