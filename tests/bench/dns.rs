//! DNS queries a second through a dnsmasq on loopback, without us and with us, in turn.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer_tests::daemon::Setup;
use enforcer_tests::resolver::{Place, Resolver};
use rustix::process::Signal;

use crate::{machine, median};

const NAMES: u32 = 1000;
/// One name in so many is denied.
const DENIED_EVERY: u32 = 10;
const SUFFIXES: u32 = 1000;
const GLOBS: u32 = 20;
const QUERIES: &str = "/run/bench-queries";
/// If `BENCH_ROUNDS` and `BENCH_SECONDS` do not say otherwise; `BENCH_SETTINGS` are more lines of enforcer.toml.
const ROUNDS: usize = 9;
const SECONDS: usize = 3;
const CPU_STAT: &str = "/sys/fs/cgroup/cpu.stat";
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
    let settings = std::env::var("BENCH_SETTINGS").unwrap_or_default();
    let setup = Setup::new(&format!("layer = \"cgroup\"\n{settings}"))?;
    setup.write_policy("deny.toml", &policy())?;

    println!(
        "DNS queries a second, dnsperf through dnsmasq on loopback, {NAMES} names, 1 in {DENIED_EVERY} denied,"
    );
    println!("policy of {SUFFIXES} suffixes and {GLOBS} globs; {rounds} rounds of {seconds} s each, in turn");
    println!("{}{}{settings}\n", machine::description(), if settings.is_empty() { "" } else { "; " });
    row("round", COLUMNS.map(|(_, name)| name.to_owned()));
    let mut columns = [const { Vec::new() }; COLUMNS.len()];
    for round in 0..rounds {
        let mut rates = [Rate::default(); COLUMNS.len()];
        // No column is always the first.
        for turn in 0..COLUMNS.len() {
            let column = (round + turn) % COLUMNS.len();
            rates[column] = measure(COLUMNS[column].0, &setup, seconds)?;
            columns[column].push(rates[column]);
        }
        row(&(round + 1).to_string(), rates.map(|rate| rate.to_string()));
    }
    let rates = columns.each_ref().map(|column| median(column.iter().map(|rate| rate.queries).collect()));
    let costs =
        columns.each_ref().map(|column| median(column.iter().map(|rate| rate.microseconds).collect()));
    row("median", [0, 1, 2].map(|n| Rate { queries: rates[n], microseconds: costs[n] }.to_string()));
    row("ratio", [0, 1, 2].map(|n| format!("{:.3} / {:.3}", rates[n] / rates[0], costs[0] / costs[n])));
    println!(
        "\nEach: queries a second, and CPU time of client, server and daemon in microseconds a query, which other load"
    );
    println!(
        "on the machine disturbs less. Ratios: of queries a second, and what CPU time alone would make it."
    );
    println!("goal {GOAL}: {}", if rates[1] / rates[0] >= GOAL { "reached" } else { "NOT reached" });
    Ok(())
}

#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    queries: f64,
    microseconds: f64,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} / {:.2}", self.queries, self.microseconds)
    }
}

fn row(name: &str, cells: [String; COLUMNS.len()]) {
    println!("{name:>6} {:>20} {:>20} {:>24}", cells[0], cells[1], cells[2]);
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

fn measure(with: With, setup: &Setup, seconds: usize) -> Result<Rate> {
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

/// Of everything in this container.
fn cpu_microseconds() -> Result<f64> {
    let text = fs::read_to_string(CPU_STAT).context(CPU_STAT)?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    Ok(usage.with_context(|| format!("no usage_usec in {CPU_STAT}"))?.parse()?)
}

fn dnsperf(seconds: usize) -> Result<Rate> {
    let before = cpu_microseconds()?;
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
    let used = cpu_microseconds()? - before;
    Ok(Rate { queries: figure("Queries per second:")?, microseconds: used / figure("Queries completed:")? })
}

fn setting(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}
