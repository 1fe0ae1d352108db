//! On what it was measured.

use std::fs;

pub(crate) fn description() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models = cpus.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let models: Vec<&str> = models.map(|(_, model)| model).collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{} x {}, kernel {}, load before {}",
        models.len(),
        models.first().unwrap_or(&"unknown CPU"),
        kernel.trim(),
        load.split_whitespace().next().unwrap_or("unknown")
    )
}
