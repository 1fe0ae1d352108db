//! The enforcer daemon, as a library so that tests and fuzzers reach its parts.
//!
//! `engine` decides and knows nothing of the world; `sys` is the world; `daemon` joins them; `cli` is what
//! people type.

pub mod api;
pub mod cli;
pub mod config;
pub mod engine;
pub mod sys;

/// STUB until the branches meet: `pub mod daemon;` replaces it.
pub mod daemon {
    pub fn run(_config: crate::config::Config) -> Result<std::process::ExitCode, String> {
        Err("this build has no daemon".into())
    }
}
