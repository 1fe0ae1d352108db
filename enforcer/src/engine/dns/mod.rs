//! DNS as the host sees it: messages (`wire`), streams of them (`stream`), what systemd-resolved tells of its own (`monitor`),
//! and what they taught us (`table`).

pub mod monitor;
pub mod stream;
pub mod table;
pub mod wire;
