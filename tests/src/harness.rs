//! Runs named tests, each in a process and a cgroup of its own: a test that panics, hangs or leaves daemons
//! behind harms no other. Results are JSON lines on standard output.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::kernel_log::{self, KernelLog};
use crate::wait;

const CGROUPS: &str = "/sys/fs/cgroup";
const LOGS: &str = "/run/vmtests";
const BPFFS: &str = "/sys/fs/bpf";
const POLL: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug)]
pub struct Test {
    pub name: &'static str,
    pub patience: Duration,
    pub run: fn() -> Result<()>,
}

const PATIENCE: Duration = Duration::from_secs(60);

pub const fn test(name: &'static str, run: fn() -> Result<()>) -> Test {
    Test { name, patience: PATIENCE, run }
}

impl Test {
    /// For a test that is known to take long.
    pub const fn patient(self, seconds: u64) -> Self {
        Self { patience: Duration::from_secs(seconds), ..self }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Record {
    /// Said before the test, with its patience: whoever reads knows how long silence is all right.
    Start {
        test: String,
        patience_seconds: u64,
    },
    Result {
        test: String,
        passed: bool,
        seconds: f64,
        output: String,
    },
    /// The last line: what is not followed by it did not end well.
    End {
        passed: usize,
        failed: usize,
    },
}

/// Runs the tests whose names contain one of the filters (all, if there is none) and reports each. The log is
/// the kernel's, if this machine runs nothing but the tests.
pub fn run(
    tests: &[Test],
    filters: &[String],
    mut log: Option<KernelLog>,
    mut report: impl FnMut(&Record),
) -> Result<()> {
    fs::create_dir_all(LOGS)?;
    let (mut passed, mut failed) = (0, 0);
    for test in tests.iter().filter(|test| selected(test.name, filters)) {
        report(&Record::Start { test: test.name.to_owned(), patience_seconds: test.patience.as_secs() });
        let result = run_one(test, log.as_mut())?;
        match &result {
            Record::Result { passed: true, .. } => passed += 1,
            _ => failed += 1,
        }
        report(&result);
    }
    // What the kernel does last, after the last test's end, counts too.
    if let Some(trouble) = trouble(log.as_mut())? {
        failed += 1;
        report(&Record::Result { test: "machine".to_owned(), passed: false, seconds: 0.0, output: trouble });
    }
    report(&Record::End { passed, failed });
    Ok(())
}

fn selected(name: &str, filters: &[String]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
}

fn trouble(log: Option<&mut KernelLog>) -> Result<Option<String>> {
    log.map_or(Ok(None), |log| Ok(kernel_log::trouble(&log.new_lines()?)))
}

fn run_one(test: &Test, log: Option<&mut KernelLog>) -> Result<Record> {
    let cgroup = Cgroup::create(test.name)?;
    let output = PathBuf::from(LOGS).join(test.name);
    let start = wait::now();
    let verdict = outcome(spawn(test.name, &output)?, test.patience)?;
    let seconds = start.elapsed().as_secs_f64();
    cgroup.kill()?;
    forget_pins(Path::new(BPFFS))?;

    let mut text = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
    let trouble = trouble(log)?;
    for problem in [verdict.as_ref(), trouble.as_ref()].into_iter().flatten() {
        text.push_str(problem);
        text.push('\n');
    }
    let passed = verdict.is_none() && trouble.is_none();
    Ok(Record::Result { test: test.name.to_owned(), passed, seconds, output: text })
}

fn spawn(name: &str, output: &Path) -> Result<Child> {
    let file = File::create(output)?;
    Command::new("/proc/self/exe")
        .args(["one", name])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("starting the test's process")
}

/// What is wrong with how the process ended; nothing, if it succeeded.
fn outcome(mut child: Child, patience: Duration) -> Result<Option<String>> {
    let start = wait::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(complaint(status));
        }
        if start.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Ok(Some(format!("still running after {patience:?}: killed")));
        }
        std::thread::sleep(POLL);
    }
}

fn complaint(status: ExitStatus) -> Option<String> {
    if status.success() { None } else { Some(format!("the test ended with {status}")) }
}

/// The child's part: joins the test's cgroup and runs it.
pub fn run_body(test: &Test) -> Result<()> {
    Cgroup::of(test.name).join()?;
    (test.run)()
}

/// Moves this process, and what it starts from now on, into a cgroup below the test's own.
pub fn enter_cgroup(name: &str) -> Result<PathBuf> {
    let lines = fs::read_to_string("/proc/self/cgroup")?;
    let own = lines
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .context("no cgroup2 in /proc/self/cgroup")?;
    let path = Path::new(CGROUPS).join(own).join(name);
    fs::create_dir(&path).with_context(|| path.display().to_string())?;
    fs::write(path.join("cgroup.procs"), "0").with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Everything that a test starts is in its cgroup, and ends with it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn of(test: &str) -> Self {
        Self(Path::new(CGROUPS).join(format!("test-{test}")))
    }

    fn create(test: &str) -> Result<Self> {
        let cgroup = Self::of(test);
        fs::create_dir_all(&cgroup.0).with_context(|| cgroup.0.display().to_string())?;
        Ok(cgroup)
    }

    fn join(&self) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), "0").context("joining the test's cgroup")
    }

    fn kill(&self) -> Result<()> {
        fs::write(self.0.join("cgroup.kill"), "1").context("cgroup.kill")?;
        wait::until("the test's processes to end", PATIENCE, || {
            let events = fs::read_to_string(self.0.join("cgroup.events"))?;
            Ok(events.contains("populated 0").then_some(()))
        })?;
        remove(&self.0).context("removing the test's cgroup")
    }
}

/// With those inside: a test that was killed could not remove its own.
fn remove(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Programs and maps that outlive their daemon must not outlive the test. Some kernels put files of their own
/// into the file system's root; ours are in directories.
fn forget_pins(bpffs: &Path) -> Result<()> {
    for entry in fs::read_dir(bpffs)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_select_by_part_of_the_name() {
        let only = |filters: &[&str]| {
            let filters = filters.iter().map(|&filter| filter.to_owned()).collect::<Vec<_>>();
            ["tcp_v4", "tcp_v6", "reload_delete"].into_iter().filter(|name| selected(name, &filters)).count()
        };
        assert_eq!(only(&[]), 3);
        assert_eq!(only(&["tcp"]), 2);
        assert_eq!(only(&["v6", "reload"]), 2);
        assert_eq!(only(&["udp"]), 0);
    }

    #[test]
    fn the_end_of_a_process_is_success_only_if_it_says_so() {
        let ends = |script: &str| {
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            outcome(child, Duration::from_millis(200)).unwrap()
        };
        assert_eq!(ends("true"), None);
        assert!(ends("exit 3").unwrap().contains('3'));
        assert!(ends("kill -SEGV $$").unwrap().contains("signal"));
        assert!(ends("sleep 60").unwrap().contains("killed"));
    }
}
