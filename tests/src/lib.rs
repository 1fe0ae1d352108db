//! Shared by the test binaries: a harness, a network with a far side, real clients and servers.

pub mod client;
pub mod daemon;
pub mod fixtures;
pub mod harness;
pub mod kernel_log;
pub mod network;
pub mod replaced;
pub mod resolver;
pub mod server;
pub mod servers;
pub mod site;
pub mod wait;
