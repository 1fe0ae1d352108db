//! What is asked of systemd: why it stops us, and that its resolver forgets what it knew before us.
//!
//! A restart and a stop send the same signal; only the job tells them apart, and only a stop may let go of what is denied.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Why this daemon is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Somebody wants it stopped: `systemctl stop`, or a signal by hand.
    Asked,
    /// The next daemon takes over: `systemctl restart`, or an upgrade.
    Restart,
    /// The machine goes down.
    Shutdown,
}

/// Asks systemd, if it started us. Blocks as long as that takes.
pub fn why_stopped() -> io::Result<Stop> {
    let Some(unit) = own_unit(&fs::read_to_string("/proc/self/cgroup")?) else { return Ok(Stop::Asked) };
    if !Path::new("/run/systemd/system").is_dir() {
        return Ok(Stop::Asked);
    }
    let jobs = Command::new("systemctl")
        .args(["list-jobs", "--plain", "--no-legend", "--no-pager"])
        .stdin(Stdio::null())
        .output()?;
    if !jobs.status.success() {
        let words = String::from_utf8_lossy(&jobs.stderr).trim().to_owned();
        return Err(io::Error::other(format!("systemctl list-jobs: {}: {words}", jobs.status)));
    }
    Ok(judge(&unit, &String::from_utf8_lossy(&jobs.stdout)))
}

/// Has systemd-resolved forget what it knows. False: it does not run. Blocks as long as that takes.
pub fn flush_caches() -> io::Result<bool> {
    if !Path::new("/run/systemd/resolve/io.systemd.Resolve").exists() {
        return Ok(false);
    }
    let flush = Command::new("resolvectl").arg("flush-caches").stdin(Stdio::null()).output()?;
    if !flush.status.success() {
        let words = String::from_utf8_lossy(&flush.stderr).trim().to_owned();
        return Err(io::Error::other(format!("resolvectl flush-caches: {}: {words}", flush.status)));
    }
    Ok(true)
}

/// The service that this process belongs to, from /proc/self/cgroup.
fn own_unit(cgroups: &str) -> Option<String> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let unit = path.rsplit('/').find(|part| part.ends_with(".service"))?;
    Some(unit.to_owned())
}

/// From the lines of `systemctl list-jobs`: number, unit, type, state.
fn judge(unit: &str, jobs: &str) -> Stop {
    let jobs = jobs.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        Some((words.next()?, words.next()?))
    });
    let mut why = Stop::Asked;
    for job in jobs {
        match job {
            ("shutdown.target", "start") => return Stop::Shutdown,
            (name, "restart") if name == unit => why = Stop::Restart,
            _ => {}
        }
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_innermost_service() {
        let rows = [
            ("0::/system.slice/enforcer.service\n", Some("enforcer.service")),
            ("0::/system.slice/enforcer.service/child", Some("enforcer.service")),
            ("12:pids:/other.service\n0::/system.slice/e.service\n", Some("e.service")),
            ("0::/user.slice/user-0.slice/session-1.scope\n", None),
            ("0::/\n", None),
            ("", None),
        ];
        for (text, unit) in rows {
            assert_eq!(own_unit(text).as_deref(), unit, "{text}");
        }
    }

    #[test]
    fn the_job_tells_why() {
        let rows = [
            ("", Stop::Asked),
            ("12 enforcer.service stop running\n", Stop::Asked),
            ("12 enforcer.service restart running\n", Stop::Restart),
            ("12 other.service restart running\n13 enforcer.service stop running\n", Stop::Asked),
            ("7 enforcer.service stop running\n8 shutdown.target start waiting\n", Stop::Shutdown),
            ("8 shutdown.target start waiting\n7 enforcer.service restart running\n", Stop::Shutdown),
            ("No jobs running.\n", Stop::Asked),
        ];
        for (jobs, why) in rows {
            assert_eq!(judge("enforcer.service", jobs), why, "{jobs}");
        }
    }
}
