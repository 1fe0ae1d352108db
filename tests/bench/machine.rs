//! On what it was measured.

use std::fs;

const BUSY: f32 = 0.5;

pub(crate) fn description() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models = cpus.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let models: Vec<&str> = models.map(|(_, model)| model).collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f32 = load.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f32::NAN);
    // What others do here is measured along.
    let rough = if load < BUSY { "" } else { " (busy with other things: the rates are rough)" };
    let model = models.first().unwrap_or(&"unknown CPU");
    format!("{} x {model}, kernel {}, load before {load:.2}{rough}", models.len(), kernel.trim())
}
