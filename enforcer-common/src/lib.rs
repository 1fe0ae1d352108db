//! What kernel and user space must agree on, written once and compiled for both.
//!
//! `no_std`, no dependencies, no allocation: everything here passes the kernel's verifier.

#![no_std]

pub mod addr;
pub mod answer;
pub mod belief;
pub mod condition;
pub mod counter;
pub mod event;
pub mod kernel;
pub mod limits;
pub mod name;
pub mod nat64;
pub mod quota;
pub mod repeat;
pub mod verdict;

pub use addr::Addr;
pub use condition::Seats;
pub use verdict::{Claim, Decision, Entry, RuleId, Said, Verdict};
