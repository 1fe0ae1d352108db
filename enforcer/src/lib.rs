//! The enforcer daemon, as a library so that tests and fuzzers reach its parts.
//!
//! `engine` decides and knows nothing of the world; `sys` is the world; `daemon` joins them; `cli` is what
//! people type.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod sys;
