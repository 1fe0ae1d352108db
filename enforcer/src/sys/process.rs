//! What user space adds to what the kernel reported about a process: names of users and groups, and what did not
//! fit into the report.
//!
//! The process may be gone by now, or its number belong to another: then this yields nothing rather than something
//! wrong.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use enforcer_common::event::ConnectRecord;

use super::accounts::Accounts;
use crate::engine::process::{self, Tail};
use crate::engine::record::{Process, printable};
use crate::engine::state::Facts;

/// Nanoseconds of one clock tick in `/proc/PID/stat` (USER_HZ is 100 on every architecture of Linux' ABI that
/// enforcer runs on).
pub(super) const TICK: u64 = 10_000_000;

/// Known cgroups. More than these are looked up again.
const CGROUPS: usize = 4096;

/// Longest command line that is shown, as in the kernel.
const ARGUMENTS: usize = 1024;

/// Reads facts about processes.
#[derive(Debug)]
pub struct Processes {
    cgroup_root: PathBuf,
    /// Whether events carry command lines.
    arguments: bool,
    /// A cgroup's id (its directory's inode number) → what its path tells.
    cgroups: HashMap<u64, Cgroup>,
    pub accounts: Accounts,
}

#[derive(Clone, Debug)]
struct Cgroup {
    path: String,
    unit: Option<String>,
    container_id: Option<String>,
}

impl Cgroup {
    fn new(path: String) -> Self {
        let unit = process::unit(&path).map(str::to_owned);
        let container_id = process::container(&path).map(str::to_owned);
        Self { path, unit, container_id }
    }

    /// Path, unit and container, as far as they are known.
    fn told(cgroup: Option<Self>) -> (Option<String>, Option<String>, Option<String>) {
        match cgroup {
            Some(Self { path, unit, container_id }) => (Some(path), unit, container_id),
            None => (None, None, None),
        }
    }
}

impl Processes {
    /// `cgroup_root`: where cgroup2 is mounted.
    pub fn new(cgroup_root: PathBuf, arguments: bool) -> Self {
        Self { cgroup_root, arguments, cgroups: HashMap::new(), accounts: Accounts::default() }
    }

    pub fn facts(&mut self, record: &ConnectRecord, tail: &Tail<'_>) -> Facts {
        let told = (tail.executable(record), tail.arguments(record));
        let (executable, arguments) = match told {
            (Some(executable), arguments) if arguments.is_some() || !self.arguments => {
                (Some(executable), arguments)
            }
            (executable, arguments) => {
                let (path, line) = self.look_again(record).unzip();
                (executable.or(path), arguments.or(line).filter(|_| self.arguments))
            }
        };
        let (cgroup, unit, container_id) = Cgroup::told(self.cgroup(record, tail));
        Facts {
            executable,
            arguments,
            cgroup,
            unit,
            container_id,
            user: self.accounts.user(record.uid).map(str::to_owned),
            group: self.accounts.group(record.gid).map(str::to_owned),
        }
    }

    /// Who holds a socket now, as far as it is found out. `uid`: of the socket.
    pub fn holder(&mut self, pid: Option<u32>, uid: u32) -> Process {
        let user = self.accounts.user(uid).map(str::to_owned);
        let nobody = Process { uid, user, ..Process::default() };
        let Some(pid) = pid else { return nobody };
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let comm = fs::read(dir.join("comm")).unwrap_or_default();
        let executable = fs::read_link(dir.join("exe")).ok();
        let membership = fs::read(dir.join("cgroup")).unwrap_or_default();
        let cgroup = cgroup_in(&membership).map(|path| Cgroup::new(printable(path)));
        let gid = fs::metadata(&dir).map_or(0, |metadata| metadata.gid());
        let (cgroup, unit, container_id) = Cgroup::told(cgroup);
        Process {
            pid,
            tid: pid,
            comm: printable(comm.strip_suffix(b"\n").unwrap_or(&comm)),
            executable: executable.map(|path| printable(path.as_os_str().as_encoded_bytes())),
            gid,
            group: self.accounts.group(gid).map(str::to_owned),
            cgroup,
            unit,
            container_id,
            ..nobody
        }
    }

    /// What did not fit into the report, or could not be read without waiting.
    fn look_again(&self, record: &ConnectRecord) -> Option<(String, Vec<String>)> {
        let dir = PathBuf::from(format!("/proc/{}", record.pid));
        let executable = fs::read_link(dir.join("exe")).ok()?;
        let line = fs::read(dir.join("cmdline")).ok()?;
        // Asked last: had the number changed hands before the other reads, it shows here.
        started(&dir).filter(|ticks| ticks.abs_diff(record.process_start / TICK) <= 1)?;
        let shown = &line[..line.len().min(ARGUMENTS)];
        let arguments = process::arguments(shown, shown.len() < line.len());
        Some((printable(executable.as_os_str().as_encoded_bytes()), arguments))
    }

    fn cgroup(&mut self, record: &ConnectRecord, tail: &Tail<'_>) -> Option<Cgroup> {
        let id = record.cgroup;
        if id != 0
            && let Some(cgroup) = self.cgroups.get(&id)
        {
            return Some(cgroup.clone());
        }
        let path = tail.cgroup(record).or_else(|| self.cgroup_of(id, record.pid))?;
        let cgroup = Cgroup::new(path);
        if self.cgroups.len() >= CGROUPS {
            self.cgroups.clear();
        }
        self.cgroups.insert(id, cgroup.clone());
        Some(cgroup)
    }

    fn cgroup_of(&self, id: u64, pid: u32) -> Option<String> {
        let membership = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
        let path = cgroup_in(&membership)?.strip_prefix(b"/")?;
        let dir = self.cgroup_root.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path));
        // The process may have moved since, or be another: the directory's inode is the proof.
        (fs::metadata(dir).ok()?.ino() == id).then(|| format!("/{}", printable(path)))
    }
}

/// The cgroup2 path in the text of `/proc/PID/cgroup`.
fn cgroup_in(membership: &[u8]) -> Option<&[u8]> {
    membership.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))
}

/// Field 22 of `/proc/PID/stat`: start after boot, in ticks. The name before it may contain anything.
pub(super) fn started(process: &Path) -> Option<u64> {
    let stat = fs::read(process.join("stat")).ok()?;
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// This process, as events tell of it: also where it has another number than the kernel's own, in a PID namespace.
#[derive(Debug)]
pub struct Own {
    pid: u32,
    executable: Option<String>,
    started: Option<u64>,
}

impl Own {
    pub fn read() -> Self {
        let this = Path::new("/proc/self");
        let executable = fs::read_link(this.join("exe")).ok();
        let executable = executable.map(|path| printable(path.as_os_str().as_encoded_bytes()));
        Self { pid: std::process::id(), executable, started: started(this) }
    }

    pub fn is(&self, process: &Process) -> bool {
        let at_once =
            process.process_start.zip(self.started).map(|(start, ticks)| ticks.abs_diff(start / TICK) <= 1);
        match at_once {
            Some(false) => false,
            Some(true) if self.executable.is_some() && process.executable == self.executable => true,
            _ => process.pid == self.pid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_start() -> u64 {
        started(Path::new("/proc/self")).unwrap() * TICK
    }

    fn record(pid: u32, start: u64) -> ConnectRecord {
        // SAFETY: integers and byte arrays only: zero is a value of each.
        let empty: ConnectRecord = unsafe { std::mem::zeroed() };
        ConnectRecord { pid, process_start: start, cgroup: 1, ..empty }
    }

    #[test]
    fn what_the_kernel_could_not_tell_is_looked_up() {
        let mut processes = Processes::new("/nonexistent".into(), true);
        let facts = processes.facts(&record(std::process::id(), own_start() + TICK / 2), &Tail::default());
        let own = std::env::current_exe().unwrap();
        assert_eq!(facts.executable.as_deref(), own.to_str());
        assert_eq!(facts.arguments.unwrap()[0], std::env::args().next().unwrap());
        assert_eq!(facts.cgroup, None, "no such cgroup mount");
        assert_eq!(facts.user.as_deref(), Some("root"));
        processes.arguments = false;
        let facts = processes.facts(&record(std::process::id(), own_start()), &Tail::default());
        assert_eq!(facts.arguments, None, "not asked for");
    }

    #[test]
    fn this_process_knows_itself_by_another_number_too() {
        let (own, this) = (Own::read(), std::env::current_exe().unwrap());
        let samples = crate::engine::format::samples::connect().process;
        let executable = this.to_str().map(str::to_owned);
        let process = Process { pid: 1, process_start: Some(own_start()), executable, ..samples };
        assert!(own.is(&process));
        let other = Some("/usr/bin/curl".to_owned());
        assert!(!own.is(&Process { executable: other.clone(), ..process.clone() }));
        assert!(!own.is(&Process { process_start: Some(own_start() + 5 * TICK), ..process.clone() }));
        assert!(own.is(&Process { pid: std::process::id(), executable: other, ..process.clone() }));
        assert!(own.is(&Process { pid: std::process::id(), process_start: None, ..process.clone() }));
        assert!(!own.is(&Process { process_start: None, ..process }), "its start is not known");
    }

    #[test]
    fn a_reused_number_and_a_gone_process_yield_nothing() {
        let mut processes = Processes::new("/nonexistent".into(), false);
        let facts = processes.facts(&record(std::process::id(), own_start() + 5 * TICK), &Tail::default());
        assert_eq!(facts.executable, None);
        assert_eq!(processes.facts(&record(u32::MAX, 0), &Tail::default()).executable, None);
    }
}
