//! Pure: no I/O, no clock, no async. Time is an argument, effects are return values.
//! `tests/purity.rs` enforces it.

pub mod blindness;
pub mod compile;
pub mod conditions;
pub mod dns;
pub mod explain;
pub mod filter;
pub mod format;
pub mod killed;
pub mod name;
pub mod plan;
pub mod policy;
pub mod process;
mod quota;
pub mod record;
mod refused;
pub mod reload;
pub mod shared;
pub mod sockaddr;
pub mod state;
pub mod summary;
pub mod tables;
mod view;
#[cfg(test)]
mod whole;
