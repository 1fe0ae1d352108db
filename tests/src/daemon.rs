//! The real daemon with policies of a test's own, watched through its own commands.

use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer::api::{Denied, Status};
use enforcer::engine::record::{Connect, Event};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::wait;

/// Beside the test runner, in the guest's payload.
const BINARY: &str = "/payload/enforcer";
const START: Duration = Duration::from_secs(30);
/// What the documentation promises for edits, and what an emulated machine may take beyond.
pub const SOON: Duration = Duration::from_secs(5);

/// Settings and policies of one test, in a directory of their own.
#[derive(Debug)]
pub struct Setup {
    pub directory: PathBuf,
}

impl Setup {
    /// `settings`: more lines for `enforcer.toml`.
    pub fn new(settings: &str) -> Result<Self> {
        let directory = PathBuf::from("/run/enforcer-test");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("policies.d"))?;
        let setup = Self { directory };
        let text = format!(
            "policies = \"{}\"\nsocket = \"{}\"\nstate = \"{}\"\n{settings}\n[[sink]]\ntype = \"json\"\npath = \"{}\"\n",
            setup.policies().display(),
            setup.directory.join("control.sock").display(),
            setup.directory.join("state.json").display(),
            setup.events_file().display()
        );
        fs::write(setup.config(), text)?;
        Ok(setup)
    }

    pub fn policies(&self) -> PathBuf {
        self.directory.join("policies.d")
    }

    pub fn policy(&self, file: &str) -> PathBuf {
        self.policies().join(file)
    }

    pub fn write_policy(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.policy(file), text).with_context(|| file.to_owned())
    }

    pub fn events_file(&self) -> PathBuf {
        self.directory.join("events.json")
    }

    fn config(&self) -> PathBuf {
        self.directory.join("enforcer.toml")
    }

    /// `enforcer` with these settings.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(BINARY).arg("--config").arg(self.config()).args(arguments).output().context(BINARY)
    }

    pub fn status(&self) -> Result<Status> {
        // Exit 1 means "not enforcing", which is an answer, too.
        let output = self.command(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("enforcer status: {output:?}"))
    }

    pub fn denied(&self) -> Result<Vec<Denied>> {
        let output = self.command(&["denied", "--json"])?;
        ensure!(output.status.success(), "enforcer denied: {output:?}");
        serde_json::from_slice(&output.stdout).with_context(|| format!("enforcer denied: {output:?}"))
    }

    pub fn is_denied(&self, address: IpAddr) -> Result<bool> {
        Ok(self.denied()?.iter().any(|denied| denied.ip == Some(address) && denied.verdict == "deny"))
    }

    /// Waits until the daemon says that the address is denied, or is not.
    pub fn until_denied(&self, address: IpAddr, wanted: bool) -> Result<()> {
        let what = format!("{address} to be {}denied", if wanted { "" } else { "no longer " });
        wait::until(&what, SOON, || Ok((self.is_denied(address)? == wanted).then_some(())))
    }

    /// The events written so far.
    pub fn events(&self) -> Result<Vec<Event>> {
        let text = fs::read_to_string(self.events_file()).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        whole.lines().map(|line| event(line).with_context(|| line.to_owned())).collect()
    }

    /// Waits for a connect event that fits.
    pub fn event(&self, what: &str, fits: impl Fn(&Connect) -> bool) -> Result<Connect> {
        wait::until(&format!("the event of {what}"), SOON, || {
            Ok(self.events()?.iter().filter_map(connect).find(|connect| fits(connect)).cloned())
        })
    }

    /// Starts the daemon and waits until it says that it enforces.
    pub fn start(&self) -> Result<Daemon<'_>> {
        self.until_enforcing(self.spawn()?)
    }

    /// With the capabilities that the unit leaves it.
    pub fn start_as_the_unit(&self) -> Result<Daemon<'_>> {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all,+bpf,+perfmon,+net_admin,+sys_ptrace", "--", BINARY]);
        self.until_enforcing(self.spawn_by(command)?)
    }

    fn until_enforcing<'a>(&self, daemon: Daemon<'a>) -> Result<Daemon<'a>> {
        wait::until("the daemon to enforce", START, || {
            let status = self.status()?;
            ensure!(status.enforcement.active, "{:?}", status.enforcement);
            Ok(Some(()))
        })
        .with_context(|| self.log())?;
        Ok(daemon)
    }

    pub fn spawn(&self) -> Result<Daemon<'_>> {
        self.spawn_by(Command::new(BINARY))
    }

    /// By a command whose last word is the binary, or that is it.
    fn spawn_by(&self, mut command: Command) -> Result<Daemon<'_>> {
        let log = File::create(self.directory.join("log"))?;
        let process = command
            .arg("--config")
            .arg(self.config())
            .arg("run")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context(BINARY)?;
        Ok(Daemon { process, setup: self })
    }

    /// What the daemon printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

/// An event as the types (and so the schema) have it: nothing more, nothing less, nothing else.
fn event(line: &str) -> Result<Event> {
    let value: serde_json::Value = serde_json::from_str(line)?;
    let event = Event::deserialize(&value)?;
    ensure!(serde_json::to_value(&event)? == value, "not what the schema says");
    Ok(event)
}

pub fn connect(event: &Event) -> Option<&Connect> {
    match event {
        Event::TcpConnect(connect) | Event::UdpConnect(connect) => Some(connect),
        Event::SocketConnect(_)
        | Event::FlowBegin(_)
        | Event::Killed(_)
        | Event::RefusedBinding(_)
        | Event::Gap(_) => None,
    }
}

/// A running daemon. Dropped: killed, as a crash would.
#[derive(Debug)]
pub struct Daemon<'a> {
    process: Child,
    setup: &'a Setup,
}

impl Daemon<'_> {
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.process), signal)?)
    }

    /// As `systemctl stop` does.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = wait::until("the daemon to stop", START, || Ok(self.process.try_wait()?))?;
        ensure!(status.success(), "the daemon ended with {status}:\n{}", self.setup.log());
        Ok(())
    }

    pub fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// The daemon ended by itself.
    pub fn ended(mut self) -> Result<std::process::ExitStatus> {
        wait::until("the daemon to end", START, || Ok(self.process.try_wait()?))
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A rule that denies one name.
pub fn deny(name: &str) -> String {
    format!("[[rule]]\nname = \"no-{name}\"\naction = \"deny\"\nhosts = [\"{name}\"]\n")
}

/// As editors do: write beside it, then rename over it.
pub fn replace_file(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(fs::rename(&beside, path)?)
}
