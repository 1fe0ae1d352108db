//! DNS queries a second through a dnsmasq on loopback, without us and with us, in turn.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer_tests::daemon::Setup;
use enforcer_tests::resolver::{Place, Resolver};
use rustix::process::Signal;

use crate::machine;

const NAMES: u32 = 1000;
/// One name in so many is denied.
const DENIED_EVERY: u32 = 10;
const SUFFIXES: u32 = 1000;
const GLOBS: u32 = 20;
const QUERIES: &str = "/run/bench-queries";
/// If `BENCH_ROUNDS` and `BENCH_SECONDS` do not say otherwise.
const ROUNDS: usize = 9;
const SECONDS: usize = 3;
const GOAL: f64 = 0.97;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    Nothing,
    Enforcer,
    /// The kernel's part alone.
    StoppedDaemon,
}

const COLUMNS: [(With, &str); 3] = [
    (With::Nothing, "without"),
    (With::Enforcer, "with enforcer"),
    (With::StoppedDaemon, "with its daemon stopped"),
];

pub(crate) fn run() -> Result<()> {
    let (rounds, seconds) = (setting("BENCH_ROUNDS", ROUNDS)?, setting("BENCH_SECONDS", SECONDS)?);
    let records: Vec<(String, IpAddr)> = (0..NAMES).map(record).collect();
    let records: Vec<_> = records.iter().map(|(name, ip)| (name.as_str(), *ip)).collect();
    let queries: String = records.iter().map(|(name, _)| format!("{name} A\n")).collect();
    fs::write(QUERIES, queries)?;
    let _resolver = Resolver::start_at(Place::Loopback, &records, &["--cache-size=10000"])?;
    let setup = Setup::new("layer = \"cgroup\"")?;
    setup.write_policy("deny.toml", &policy())?;

    println!(
        "DNS queries a second, dnsperf through dnsmasq on loopback, {NAMES} names, 1 in {DENIED_EVERY} denied,"
    );
    println!("policy of {SUFFIXES} suffixes and {GLOBS} globs; {rounds} rounds of {seconds} s each, in turn");
    println!("{}\n", machine::description());
    println!("{:>5} {:>14} {:>16} {:>24}", "round", COLUMNS[0].1, COLUMNS[1].1, COLUMNS[2].1);
    let mut columns = [const { Vec::new() }; COLUMNS.len()];
    for round in 0..rounds {
        let mut rates = [0.0; COLUMNS.len()];
        // No column is always the first.
        for turn in 0..COLUMNS.len() {
            let column = (round + turn) % COLUMNS.len();
            rates[column] = measure(COLUMNS[column].0, &setup, seconds)?;
            columns[column].push(rates[column]);
        }
        println!("{:>5} {:>14.0} {:>16.0} {:>24.0}", round + 1, rates[0], rates[1], rates[2]);
    }
    let [without, with, stopped] = columns.map(median);
    println!("{:>5} {without:>14.0} {with:>16.0} {stopped:>24.0}", "median");
    println!("{:>5} {:>14} {:>16.3} {:>24.3}", "ratio", "1", with / without, stopped / without);
    println!("\ngoal {GOAL}: {}", if with / without >= GOAL { "reached" } else { "NOT reached" });
    Ok(())
}

fn record(n: u32) -> (String, IpAddr) {
    let part = if n.is_multiple_of(DENIED_EVERY) { "tracker" } else { "site" };
    (format!("n{n}.{part}{n}.example"), Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + n).into())
}

fn policy() -> String {
    let mut hosts = String::new();
    for n in 0..SUFFIXES {
        let _ = write!(hosts, "\".tracker{n}.example\", ");
    }
    for n in 0..GLOBS {
        let _ = write!(hosts, "\"ads-*.g{n}-[a-z].example\", ");
    }
    format!("[[rule]]\nname = \"r\"\naction = \"deny\"\nhosts = [{hosts}]\n")
}

fn measure(with: With, setup: &Setup, seconds: usize) -> Result<f64> {
    if with == With::Nothing {
        return dnsperf(seconds);
    }
    let daemon = setup.start()?;
    if with == With::StoppedDaemon {
        daemon.signal(Signal::STOP)?;
    }
    let before = if with == With::Enforcer { Some(setup.status()?.dns.matched) } else { None };
    let rate = dnsperf(seconds);
    daemon.signal(Signal::CONT)?;
    if let Some(before) = before {
        ensure!(setup.status()?.dns.matched > before, "no answer was matched: this measures nothing");
    }
    daemon.stop()?;
    // What it wrote is of no use.
    let _ = fs::remove_file(setup.events_file());
    rate
}

fn dnsperf(seconds: usize) -> Result<f64> {
    let output = Command::new("dnsperf")
        .args(["-s", "127.0.0.1", "-d", QUERIES, "-l", &seconds.to_string(), "-c", "4", "-q", "64"])
        .output()
        .context("dnsperf")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = |what: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(what));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.and_then(|word| word.parse().ok()).with_context(|| format!("no `{what}` in {output:?}"))
    };
    ensure!(figure("Queries lost:")? <= figure("Queries sent:")? / 100.0, "more than 1 % was lost:\n{text}");
    figure("Queries per second:")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn setting(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}
