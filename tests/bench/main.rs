//! What enforcing costs, in one run and one table. `make bench` starts it in a container: see tests/vm/README.md.

mod dns;
mod machine;

use std::process::ExitCode;

fn main() -> ExitCode {
    match dns::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}
