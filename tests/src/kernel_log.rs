//! The kernel's own complaints: a test during which the kernel warns or oopses has failed.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};

/// Parts of lines that only a kernel in trouble prints.
const TROUBLE: [&str; 9] = [
    "BUG:",
    "WARNING:",
    "Oops",
    "general protection fault",
    "blocked for more than",
    "detected stall",
    "lockup",
    "Call Trace:",
    "Call trace:", // arm64
];

/// How much of the log around a complaint is worth reading.
const CONTEXT_LINES: usize = 40;

#[derive(Debug)]
pub struct KernelLog {
    records: File,
}

impl KernelLog {
    /// Starts with the oldest record that the kernel still has.
    pub fn open() -> Result<Self> {
        let records = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("/dev/kmsg")?;
        Ok(Self { records })
    }

    /// What was logged since the last call.
    pub fn new_lines(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.records.read(&mut record) {
                Ok(0) => return Ok(lines),
                Ok(length) => lines.push(message(&String::from_utf8_lossy(&record[..length]))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
                // Overrun: the record was overwritten; the next read has the oldest one left.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error).context("reading /dev/kmsg"),
            }
        }
    }
}

/// `6,339,5140900,-;text\n KEY=value` → `text`.
fn message(record: &str) -> String {
    let text = record.split_once(';').map_or(record, |(_, text)| text);
    text.lines().next().unwrap_or_default().to_owned()
}

/// The part of the log that begins with the first complaint.
pub fn trouble(lines: &[String]) -> Option<String> {
    let first = lines.iter().position(|line| TROUBLE.iter().any(|sign| line.contains(sign)))?;
    let end = lines.len().min(first + CONTEXT_LINES);
    Some(lines[first..end].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_reduced_to_its_message() {
        assert_eq!(
            message("6,339,5140900,-;NET: Registered PF_INET\n SUBSYSTEM=net\n"),
            "NET: Registered PF_INET"
        );
    }

    #[test]
    fn complaints_are_found_and_ordinary_lines_are_not() {
        let lines = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let calm = lines(&["NMI watchdog: Perf NMI watchdog permanently disabled", "audit: type=2000"]);
        assert_eq!(trouble(&calm), None);
        for complaint in [
            "WARNING: CPU: 0 PID: 77 at kernel/bpf/verifier.c:1 check+0x1/0x2",
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
            "INFO: task enforcer:77 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
        ] {
            let log = lines(&["before", complaint, "after"]);
            assert_eq!(trouble(&log), Some(format!("{complaint}\nafter")), "{complaint}");
        }
    }
}
