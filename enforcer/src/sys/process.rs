//! What user space can still find out about a process that connected.
//!
//! The kernel reported who it was; the executable's path and the cgroup's are read here, a moment later. A
//! process that is gone, or whose number belongs to another by now, yields nothing rather than something wrong.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::engine::state::Facts;

/// Nanoseconds of one clock tick in `/proc/PID/stat` (USER_HZ is 100 on every architecture of Linux' ABI that
/// enforcer runs on).
const TICK: u64 = 10_000_000;

/// Known cgroups. More than these are looked up again.
const CGROUPS: usize = 4096;

/// Reads facts about processes.
#[derive(Debug)]
pub struct Processes {
    cgroup_root: PathBuf,
    /// A cgroup's id (its directory's inode number) → its path below the root.
    cgroups: HashMap<u64, String>,
}

impl Processes {
    /// `cgroup_root`: where cgroup2 is mounted.
    pub fn new(cgroup_root: PathBuf) -> Self {
        Self { cgroup_root, cgroups: HashMap::new() }
    }

    /// `start`: the process's start on the boot-time clock, in nanoseconds, as the kernel reported it.
    pub fn facts(&mut self, pid: u32, start: u64, cgroup: u64) -> Facts {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let executable = fs::read_link(dir.join("exe")).ok();
        let known = self.cgroup(cgroup, &dir);
        // Asked last: had the number changed hands before the other reads, it shows here.
        let same = started(&dir).is_some_and(|ticks| ticks.abs_diff(start / TICK) <= 1);
        Facts {
            executable: executable.filter(|_| same).map(|path| path.to_string_lossy().into_owned()),
            cgroup: known,
        }
    }

    fn cgroup(&mut self, id: u64, process: &Path) -> Option<String> {
        if let Some(path) = self.cgroups.get(&id) {
            return Some(path.clone());
        }
        let membership = fs::read_to_string(process.join("cgroup")).ok()?;
        let path = membership.lines().find_map(|line| line.strip_prefix("0::"))?;
        let dir = self.cgroup_root.join(path.trim_start_matches('/'));
        // The process may have moved since, or be another: the directory's inode is the proof.
        if fs::metadata(dir).ok()?.ino() != id {
            return None;
        }
        if self.cgroups.len() >= CGROUPS {
            self.cgroups.clear();
        }
        self.cgroups.insert(id, path.to_owned());
        Some(path.to_owned())
    }
}

/// Field 22 of `/proc/PID/stat`: start after boot, in ticks. The name before it may contain anything.
fn started(process: &Path) -> Option<u64> {
    let stat = fs::read(process.join("stat")).ok()?;
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_start() -> u64 {
        started(Path::new("/proc/self")).unwrap() * TICK
    }

    #[test]
    fn knows_itself() {
        let mut processes = Processes::new("/nonexistent".into());
        let facts = processes.facts(std::process::id(), own_start() + TICK / 2, 1);
        let own = std::env::current_exe().unwrap();
        assert_eq!(facts.executable.as_deref(), own.to_str());
        assert_eq!(facts.cgroup, None, "no such cgroup mount");
    }

    #[test]
    fn a_reused_number_and_a_gone_process_yield_nothing() {
        let mut processes = Processes::new("/nonexistent".into());
        assert_eq!(processes.facts(std::process::id(), own_start() + 5 * TICK, 1).executable, None);
        assert_eq!(processes.facts(u32::MAX, 0, 1), Facts::default());
    }
}
