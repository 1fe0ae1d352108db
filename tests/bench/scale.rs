//! A million names and a thousand globs: loading, memory, and what an answer costs beside a small policy.
//!
//! Names are the lines of `/payload/names.txt` (`BENCH_NAMES=FILE make bench`), or made up where there is none.

use std::collections::HashSet;
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

/// Peak and current resident memory, in MB, as soon as it changes no more: the copy for a start with errors in the files
/// is written beside the daemon's work.
fn memory(pid: u32) -> Result<(f64, f64)> {
    let mut last = None;
    wait::until_every(Duration::from_millis(500), "the daemon to come to rest", PATIENCE, || {
        let read = Some(resident(pid)?);
        Ok(if std::mem::replace(&mut last, read) == read { read } else { None })
    })
}

fn resident(pid: u32) -> Result<(f64, f64)> {
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

/// What an answer is about.
const KINDS: [&str; 3] = ["a listed name", "a name below one", "another name"];

/// Answers by what they are about, all different, with few names and with all. Each kind by itself: an answer that is
/// matched does more, and of a larger list more is matched.
fn answers(names: &[String]) -> Result<()> {
    let directory = Path::new("/run/bench-scale");
    fs::create_dir_all(directory)?;
    let mut subject = Subject::load();
    let rules = |names: &[String], globs: &str| -> Result<Rules> {
        let path = directory.join("list.txt");
        fs::write(&path, list(names, 0))?;
        Ok(Rules::read(&policy(&path.display().to_string(), globs)))
    };
    let few = &few(names);
    let policies = [
        (rules(few, "\"ads-*.example\", ")?, frames(few)),
        (rules(few, &globs())?, frames(few)),
        (rules(names, &globs())?, frames(names)),
    ];
    let mut medians = [const { [const { Vec::new() }; KINDS.len()] }; 3];
    for _ in 0..ROUNDS {
        for (medians, (rules, frames)) in medians.iter_mut().zip(&policies) {
            subject.answers.install(rules.tables())?;
            for (medians, frames) in medians.iter_mut().zip(frames) {
                medians.push(median(frames.iter().map(|frame| subject.time(frame, 1)).collect()));
            }
        }
    }
    let [few, few_names, all] = medians.map(|kinds| kinds.map(median));
    println!("\nan answer in ns, all different, about {}", KINDS.join(" | "));
    let row = |what: String, of: [f64; KINDS.len()]| {
        println!("{what:42} {}", of.map(|one| format!("{one:>9.0}")).concat());
    };
    row(format!("  {FEW} names, 2 globs"), few);
    row(format!("  {FEW} names, {GLOBS} globs"), few_names);
    row(format!("  {} names, {GLOBS} globs", names.len()), all);
    for (of, kind) in KINDS.iter().enumerate() {
        self::row(&format!("  ratio by names, {kind}"), all[of] / few_names[of], "", 1.1);
    }
    for (of, kind) in KINDS.iter().enumerate() {
        self::row(&format!("  ratio by names and globs, {kind}"), all[of] / few[of], "", 1.1);
    }
    Ok(())
}

/// Some, of as many numbers of labels as there are: of each suffix that may be listed a hash is made, however few names
/// there are.
fn few(names: &[String]) -> Vec<String> {
    let mut lengths = HashSet::new();
    let labels = |name: &str| name.split('.').count();
    let mut few: Vec<String> = names.iter().filter(|name| lengths.insert(labels(name))).cloned().collect();
    few.extend(names.iter().take(FEW).cloned());
    few.truncate(FEW);
    few
}

/// Of each kind, each with an address of its own.
fn frames(names: &[String]) -> [Vec<Vec<u8>>; KINDS.len()] {
    let step = (names.len() / ANSWERS).max(1);
    let frame = |n: usize, name: &str| {
        let address = [198, 18, (n >> 8) as u8, n as u8];
        Carrier::Udp4.frame(&Message::asked(name, A, true).a(name, 60, address).bytes)
    };
    let all = |name: &dyn Fn(usize) -> String| (0..ANSWERS).map(|n| frame(n, &name(n))).collect();
    let listed = |n: usize| names[n * step % names.len()].clone();
    [all(&listed), all(&|n| format!("www.{}", listed(n))), all(&|n| format!("www.innocent{n}.example.com"))]
}
