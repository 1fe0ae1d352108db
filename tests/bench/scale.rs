//! A million names and a thousand globs: loading, memory, and what an answer costs beside a small policy.
//!
//! Names are the lines of `/payload/names.txt` (`BENCH_NAMES=FILE make bench`), or made up where there is none.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::daemon::{Setup, replace_file};
use enforcer_tests::wait;

use crate::message::{A, Carrier, Message};
use crate::subject::{Rules, Subject};
use crate::{machine, median};

const NAMES: usize = 1_000_000;
const GLOBS: usize = 1_000;
const FEW: usize = 10;
/// Of the list, changed by an edit.
const CHANGED: usize = NAMES / 100;
const ANSWERS: usize = 2_000;
const ROUNDS: usize = 9;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<()> {
    let names = names();
    println!("{} names and {GLOBS} globs; {}\n", names.len(), machine::description());
    println!("{:42} {:>12} {:>10}", "", "measured", "goal");
    daemon(&names)?;
    answers(&names)
}

fn row(what: &str, measured: f64, unit: &str, goal: f64) {
    let mark = if measured <= goal { "" } else { "  NOT reached" };
    println!("{what:42} {:>12} {:>10}{mark}", format!("{measured:.1} {unit}"), format!("{goal} {unit}"));
}

fn names() -> Vec<String> {
    let text = fs::read_to_string("/payload/names.txt").unwrap_or_default();
    let given: Vec<String> = text.lines().take(NAMES).map(str::to_owned).collect();
    if given.is_empty() {
        (0..NAMES).map(|n| format!("n{n}.made{}.up{}.example", n % 977, n % 13)).collect()
    } else {
        given
    }
}

/// Of every shape: a wildcard at the beginning, in the middle, at the end, classes, choices.
fn globs() -> String {
    let word = |n: usize| format!("{:x}", (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40);
    let glob = |kind: usize, n: String| match kind {
        0 => format!("ads-{n}-*.example"),
        1 => format!("*-track{n}.*"),
        2 => format!("cdn[0-9]{n}.example.net"),
        3 => format!("{{pixel,beacon}}{n}.example.org"),
        _ => format!("*.t{n}?.example"),
    };
    (0..GLOBS).fold(String::new(), |mut all, n| {
        let _ = write!(all, "\"{}\", ", glob(n % 5, word(n)));
        all
    })
}

fn policy(list: &str, globs: &str) -> String {
    format!(
        "[[rule]]\nname = \"listed\"\naction = \"deny\"\nlists = [{{ path = \"{list}\", format = \"domains\" }}]\n\
         [[rule]]\nname = \"globs\"\naction = \"deny\"\nhosts = [{globs}\"g.example\"]\n"
    )
}

fn list(names: &[String], changed: usize) -> String {
    let mut text = String::with_capacity(24 * names.len());
    for (n, name) in names.iter().enumerate() {
        let mark = if n < changed { "changed-" } else { "" };
        let _ = writeln!(text, "{mark}{name}");
    }
    text
}

/// The real daemon: start, edit, memory.
fn daemon(names: &[String]) -> Result<()> {
    let setup = Setup::new("layer = \"cgroup\"\nevents = \"none\"")?;
    let path = setup.policies().join("list.txt");
    fs::write(&path, list(names, 0))?;
    setup.write_policy("deny.toml", &policy("list.txt", &globs()))?;
    let daemon = setup.start()?;
    let status = setup.status()?;
    let policy = &status.policy;
    ensure!(policy.names > names.len() * 9 / 10, "{policy:?}");
    row("first load", policy.load_milliseconds as f64, "ms", 2000.0);
    let (peak, now) = memory(status.pid)?;
    row("daemon RSS, peak of the first load", peak, "MB", 200.0);
    row("daemon RSS, after", now, "MB", 50.0);
    println!("{:42} {:>9.1} MB", "  of which the ring, mapped twice", RING_MAPPED);

    let text = list(names, CHANGED);
    let start = wait::now();
    replace_file(&path, &text)?;
    wait::until("the edited list to be in force", PATIENCE, || {
        Ok((setup.status()?.policy.loads > policy.loads).then_some(()))
    })?;
    row("edit of 1 % to in force, watching included", start.elapsed().as_secs_f64() * 1000.0, "ms", 1000.0);
    row("  of which reading to in force", setup.status()?.policy.load_milliseconds as f64, "ms", 1000.0);
    let (peak, now) = memory(status.pid)?;
    row("daemon RSS, peak with a reload", peak, "MB", 200.0);
    row("daemon RSS, after", now, "MB", 50.0);

    let kernel = kernel_memory()?;
    row("kernel memory a name", kernel as f64 / policy.names as f64, "B", 100.0);
    println!(
        "{:42} {:>12}",
        "globs in the kernel, late; states",
        format!("{}, {}; {}", policy.globs, policy.late_globs, policy.states)
    );
    daemon.stop()
}

/// The kernel's memory, which counts as the daemon's as well.
const RING_MAPPED: f64 = 2.0 * enforcer_common::limits::RING_BYTES as f64 / 1e6;

/// Peak and current resident memory, in MB.
fn memory(pid: u32) -> Result<(f64, f64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).context(name.to_owned())?;
        let kilobytes: f64 = line.split_whitespace().next().context("no number")?.parse()?;
        Ok(kilobytes / 1000.0)
    };
    Ok((field("VmHWM:")?, field("VmRSS:")?))
}

/// Bytes of the maps that hold names, by what the kernel says.
fn kernel_memory() -> Result<u64> {
    let output = Command::new("bpftool").args(["-j", "map", "show"]).output().context("bpftool")?;
    let maps: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)?;
    let names = maps.iter().filter(|map| map["name"] == "NAMES" && map["type"] == "array");
    let bytes: u64 = names.filter_map(|map| map["bytes_memlock"].as_u64()).sum();
    ensure!(bytes > 0, "bpftool shows no map of names: {maps:?}");
    Ok(bytes)
}

/// Answers about names that are and are not listed, all different, with few names and with all.
fn answers(names: &[String]) -> Result<()> {
    let directory = Path::new("/run/bench-scale");
    fs::create_dir_all(directory)?;
    let mut subject = Subject::load();
    let rules = |names: &[String], globs: &str| -> Result<Rules> {
        let path = directory.join("list.txt");
        fs::write(&path, list(names, 0))?;
        Ok(Rules::read(&policy(&path.display().to_string(), globs)))
    };
    let few = rules(&names[..FEW], "\"ads-*.example\", ")?;
    let few_names = rules(&names[..FEW], &globs())?;
    let all = rules(names, &globs())?;
    let frames: Vec<Vec<u8>> = (0..ANSWERS)
        .map(|n| {
            let step = names.len() / ANSWERS;
            let name = match n % 3 {
                0 => names[n * step].clone(),
                1 => format!("www.{}", names[n * step]),
                _ => format!("www.innocent{n}.example.com"),
            };
            Carrier::Udp4.frame(&Message::asked(&name, A, true).a(&name, 60, [203, 0, 113, 1]).bytes)
        })
        .collect();
    let mut medians = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (of, rules) in [&few, &few_names, &all].into_iter().enumerate() {
            subject.answers.install(rules.tables())?;
            medians[of].push(median(frames.iter().map(|frame| subject.time(frame, 1)).collect()));
        }
    }
    let [few, few_names, all] = medians.map(median);
    println!("{:42} {few:>9.0} ns", format!("an answer, all different: {FEW} names, 2 globs"));
    println!("{:42} {few_names:>9.0} ns", format!("  {FEW} names, {GLOBS} globs"));
    println!("{:42} {all:>9.0} ns", format!("  {} names, {GLOBS} globs", names.len()));
    row("  ratio by names", all / few_names, "", 1.1);
    row("  ratio by names and globs", all / few, "", 1.1);
    Ok(())
}
