//! Runs inside the guest or container: `vmtests run [FILTER..]`, `vmtests list`, `vmtests network` (for an interactive shell),
//! `vmtests record`.

mod cases;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use enforcer_tests::harness::{self, Test};
use enforcer_tests::kernel_log::KernelLog;
use enforcer_tests::network;

fn main() -> ExitCode {
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest = arguments.collect::<Vec<_>>();
    let tests = if matches!(command.as_str(), "quick" | "probe") { Vec::new() } else { cases::all() };
    match command.as_str() {
        "run" => run(&tests, &rest),
        "one" => one(&tests, rest.first().context("which test?")?),
        "quick" => match rest.as_slice() {
            [address, cgroup] => cases::facts::quick(address, cgroup),
            _ => bail!("usage: vmtests quick ADDRESS CGROUP"),
        },
        "probe" => cases::scopes::probe(),
        "network" => network::build(),
        "record" => {
            network::build()?;
            cases::resolvers::record()
        }
        "list" => {
            tests.iter().for_each(|test| println!("{}", test.name));
            Ok(())
        }
        _ => bail!("usage: vmtests run [FILTER..] | one TEST | list | network | record"),
    }
}

fn run(tests: &[Test], filters: &[String]) -> Result<()> {
    network::build()?;
    // The log of a machine that runs other things as well tells nothing about the tests.
    let log = if cases::is_native() { None } else { Some(KernelLog::open()?) };
    harness::run(tests, filters, log, |record| {
        let line = serde_json::to_string(record).unwrap_or_else(|error| error.to_string());
        let mut out = std::io::stdout().lock();
        // Nobody is left to tell if the line to the host is gone; the host notices that it is.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    })
}

fn one(tests: &[Test], name: &str) -> Result<()> {
    let test =
        tests.iter().find(|test| test.name == name).with_context(|| format!("no test named {name}"))?;
    harness::run_body(test)
}
