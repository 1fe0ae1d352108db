//! The world: kernel, files, sockets, clocks. `engine` knows none of it.

pub mod accounts;
pub mod bpf;
pub mod btf;
pub mod canary;
pub mod clock;
pub mod connections;
pub mod control;
pub mod enclosure;
pub mod host;
pub mod last_good;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod netlink;
pub mod policy_dir;
pub mod preflight;
pub mod private_file;
pub mod process;
pub mod random;
pub mod ring;
pub mod routes;
pub mod sink;
pub mod sockets;
pub mod state_file;
pub mod systemd;
pub mod ways;
