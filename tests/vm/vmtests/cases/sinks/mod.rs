//! Where events go, with the servers that people have: what is lost is counted where it was lost, everybody else has
//! everything, and `enforcer status` says what is wrong and what to do.

mod files;
mod metrics;
mod otlp;
mod syslog;
mod webhook;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, str};

use anyhow::{Context, Result, ensure};
use enforcer::api::SinkStatus;
use enforcer::engine::record::Event;
use enforcer_tests::daemon::{Setup, connect};
use enforcer_tests::harness::Test;
use enforcer_tests::wait;
use rustix::process::{Pid, Signal, kill_process};

use super::GOOD_V4;

pub(crate) fn tests() -> Vec<Test> {
    [syslog::tests(), webhook::tests(), otlp::tests(), files::tests(), metrics::tests()].concat()
}

/// A test's own events have these ports, by which they are told apart and counted.
const FIRST: u16 = 20_000;
const FILTER: &str = "filter = 'dst_port >= 20000 && dst_port < 40000'";
const SOON: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(30);

/// One event for each number.
fn fire(numbers: Range<u16>) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for number in numbers {
        socket.connect((GOOD_V4, FIRST + number))?;
    }
    Ok(())
}

fn number(event: &Event) -> Option<u16> {
    connect(event)?.dst_port.checked_sub(FIRST).filter(|number| *number < 20_000)
}

fn numbers<'e>(events: impl IntoIterator<Item = &'e Event>) -> BTreeSet<u16> {
    events.into_iter().filter_map(number).collect()
}

/// What the stream itself says that it lacks.
fn in_gaps<'e>(events: impl IntoIterator<Item = &'e Event>) -> u64 {
    let lost = |event: &Event| if let Event::Gap(gap) = event { gap.lost_events } else { 0 };
    events.into_iter().map(lost).sum()
}

/// One a line; a line that is not whole yet is not read.
fn events_of(path: &Path) -> Result<Vec<Event>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// The sink that every test has beside the one that it is about: it misses nothing, whatever becomes of the other.
fn sound(setup: &Setup, fired: u16) -> Result<()> {
    wait::until_every(POLL, &format!("the sound sink to have {fired} events"), SOON, || {
        let seen = numbers(&setup.events()?).len();
        ensure!(seen == usize::from(fired), "it has {seen}");
        Ok(Some(()))
    })
}

/// Waits for a state of the sink whose name begins so.
fn until(setup: &Setup, sink: &str, what: &str, fits: impl Fn(&SinkStatus) -> bool) -> Result<SinkStatus> {
    wait::until_every(POLL, &format!("{sink}: {what}"), SOON, || {
        let sinks = setup.status()?.sinks;
        let status =
            sinks.into_iter().find(|status| status.name.starts_with(sink)).context("no such sink")?;
        ensure!(fits(&status), "{status:?}");
        Ok(Some(status))
    })
}

fn idle(status: &SinkStatus) -> bool {
    status.waiting == 0
}

fn fails_with(text: &str) -> impl Fn(&SinkStatus) -> bool {
    move |status| {
        let error = status.error.as_deref().unwrap_or_default();
        error.contains(text) && !error.starts_with("recovered")
    }
}

/// What people read names the sink, its loss and the reason.
fn status_says(setup: &Setup, words: &[&str]) -> Result<()> {
    let output = setup.command(&["status"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| words.iter().all(|word| line.contains(word)));
    line.map(drop).with_context(|| format!("no line of the status has {words:?}:\n{text}"))
}

/// Another program, ended when dropped.
struct Program(Child);

impl Program {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("{command:?}"))?))
    }

    /// As an init system does.
    fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        wait::until("the program to end", SOON, || Ok(self.0.try_wait()?))?;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(output.stdout)
}
