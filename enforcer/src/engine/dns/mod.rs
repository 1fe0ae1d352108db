//! DNS as the host sees it: messages (`wire`), streams of them (`stream`), and what they taught us (`table`).

pub mod stream;
pub mod table;
pub mod wire;
