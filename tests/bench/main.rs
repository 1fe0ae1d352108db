//! What enforcing costs, in one run and one table. `make bench` starts it in a container: see tests/vm/README.md.

mod dns;
mod machine;
#[path = "../packet/message.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "shared with the packet test, which uses all of it")]
mod message;
mod scale;
#[path = "../packet/subject.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "shared with the packet test, which uses all of it")]
mod subject;

use std::process::ExitCode;

/// All, or those that are named.
type Benchmark = (&'static str, fn() -> anyhow::Result<()>);
const BENCHMARKS: [Benchmark; 2] = [("scale", scale::run), ("dns", dns::run)];

fn main() -> ExitCode {
    let named: Vec<String> = std::env::args().skip(1).collect();
    let run = || {
        for (name, run) in BENCHMARKS {
            if named.is_empty() || named.iter().any(|one| one == name) {
                run()?;
                println!();
            }
        }
        anyhow::Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
