//! Files and pipes: a disk that is full, a reader that is gone, and one that does not read.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::Event;
use enforcer_tests::daemon::Setup;
use enforcer_tests::harness::{Test, test};
use enforcer_tests::wait;

use super::{
    FILTER, Program, SOON, events_of, fails_with, fire, idle, in_gaps, numbers, run, sound, status_says,
    until,
};
use crate::cases::setup;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test("sink_file_outlives_a_full_disk", full),
        test("sink_fifo_outlives_its_reader", fifo),
        test("sink_stdout_outlives_its_reader", stdout),
        test("sink_stdout_that_nobody_reads_delays_nobody", unread),
    ]
}

const QUEUE: u16 = 100;
const UNREAD: &str = "nobody reads this pipe; start its reader";

fn full() -> Result<()> {
    let disk = "/run/disk";
    fs::create_dir_all(disk)?;
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", disk])?;
    let path = Path::new(disk).join("events.json");
    let file = path.display();
    let setup = setup(&format!("[[sink]]\ntype = \"file\"\npath = \"{file}\"\n{FILTER}\n"))?;
    let daemon = setup.start()?;
    let name = format!("json {file}");
    let fired = 300;
    fire(0..fired)?;
    let status = until(&setup, &name, "everything to be written or lost", |status| {
        status.written + status.lost == u64::from(fired)
    })?;
    ensure!(status.lost > 0 && status.written > 0, "{status:?}");
    ensure!(status.error.as_deref().is_some_and(|error| error.contains("No space left")), "{status:?}");
    sound(&setup, fired)?;
    status_says(&setup, &[&name, "lost", "No space left"])?;
    let kept = Path::new("/run/kept.json");
    fs::copy(&path, kept)?;
    ensure!(numbers(&events_of(kept)?).len() as u64 == status.written, "not what was counted");

    fs::remove_file(&path)?;
    fire(fired..fired + 10)?;
    let back = until(&setup, &name, "to write again", |back| back.written == status.written + 10)?;
    ensure!(back.lost == status.lost, "{back:?}");
    ensure!(back.error.as_deref().is_some_and(|error| error.starts_with("recovered from: ")), "{back:?}");
    daemon.stop()?;
    let events = events_of(&path)?;
    ensure!(numbers(&events).len() == 10 && in_gaps(&events) == back.lost, "{events:?}");
    println!("measured: of {fired} events {} did not fit", back.lost);
    Ok(())
}

fn fifo() -> Result<()> {
    let path = "/run/fifo";
    run("mkfifo", &[path])?;
    let setup = setup(&format!("[[sink]]\ntype = \"file\"\npath = \"{path}\"\n{FILTER}\n"))?;
    let _daemon = setup.start()?;
    let name = format!("json {path}");
    fire(0..10)?;
    until(&setup, &name, "to miss a reader", |status| status.lost == 10)?;
    let reader = open(path)?;
    fire(10..20)?;
    ensure!(read(&reader, 11)? == (10, 10), "not the gap and 10 events");
    until(&setup, &name, "to have written", |status| (status.written, status.lost) == (10, 10))?;
    drop(reader);
    fire(20..30)?;
    until(&setup, &name, "to miss its reader", |status| fails_with(UNREAD)(status) && status.lost == 20)?;
    status_says(&setup, &[&name, "20 lost", UNREAD])?;
    let reader = open(path)?;
    fire(30..40)?;
    ensure!(read(&reader, 11)? == (10, 10), "not the gap and 10 events");
    sound(&setup, 40)
}

/// Of so many lines: the events, and those that gaps tell of.
fn read(reader: &File, lines: usize) -> Result<(usize, u64)> {
    let lines = BufReader::new(reader).lines().take(lines);
    let events = lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect::<Result<Vec<Event>>>()?;
    Ok((numbers(&events).len(), in_gaps(&events)))
}

/// To read and to write: that never waits for the other side.
fn open(fifo: &str) -> Result<File> {
    Ok(File::options().read(true).write(true).open(fifo)?)
}

/// The daemon as in a shell's pipeline.
fn piped(more: &str) -> Result<(Setup, Program)> {
    let setup = setup(&format!("[[sink]]\ntype = \"stdout\"\nformat = \"json\"\n{more}\n{FILTER}\n"))?;
    let log = File::create(setup.directory.join("log"))?;
    let mut command = Command::new("/payload/enforcer");
    command.arg("--config").arg(setup.directory.join("enforcer.toml")).arg("run");
    let daemon = Program::start(command.stdout(Stdio::piped()).stderr(log))?;
    wait::until("the daemon to enforce", SOON, || {
        ensure!(setup.status()?.enforcement.active, "it does not");
        Ok(Some(()))
    })
    .with_context(|| setup.log())?;
    Ok((setup, daemon))
}

fn stdout() -> Result<()> {
    let (setup, mut daemon) = piped("")?;
    let reader = daemon.0.stdout.take().context("no pipe")?;
    fire(0..10)?;
    let mut lines = BufReader::new(reader).lines();
    for _ in 0..10 {
        lines.next().context("the pipe has ended")??;
    }
    drop(lines);
    fire(10..30)?;
    let status = until(&setup, "json stdout", "to miss its reader", |status| status.lost == 20)?;
    ensure!(fails_with(UNREAD)(&status) && status.written == 10, "{status:?}");
    status_says(&setup, &["json stdout", "20 lost", UNREAD])?;
    sound(&setup, 30)?;
    ensure!(daemon.0.try_wait()?.is_none(), "the daemon ended with its reader");
    Ok(())
}

fn unread() -> Result<()> {
    let (setup, mut daemon) = piped(&format!("queue = {QUEUE}"))?;
    let fired = 1000; // more than a pipe and the queue hold
    for start in (0..fired).step_by(250) {
        fire(start..start + 250)?;
        sound(&setup, start + 250)?;
    }
    let status = until(&setup, "json stdout", "losses", |status| status.lost > 0)?;
    ensure!(status.written + status.lost + status.waiting == u64::from(fired), "{status:?}");
    status_says(&setup, &["json stdout", "lost", "too slow"])?;
    // All that was not lost is there, once somebody reads.
    let reader = daemon.0.stdout.take().context("no pipe")?;
    let mut lines = BufReader::new(reader).lines();
    let mut seen = Vec::new();
    while (numbers(&seen).len() as u64) < u64::from(fired) - status.lost {
        let line = lines.next().context("the pipe has ended")??;
        seen.push(serde_json::from_str::<Event>(&line)?);
    }
    until(&setup, "json stdout", "to be done", idle)?;
    Ok(())
}
