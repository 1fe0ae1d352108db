//! The world: kernel, files, sockets, clocks. `engine` knows none of it.

pub mod bpf;
pub mod btf;
pub mod canary;
pub mod host;
pub mod process;
