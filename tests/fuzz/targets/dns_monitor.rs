//! Whatever systemd-resolved may say is a DNS message, nothing, or an error.
#![no_main]

use enforcer::engine::dns::{monitor, wire};
use enforcer_common::limits::CNAME_CHAIN;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(monitor::Heard::Answer(message)) = monitor::read(bytes)
        && let Ok(answer) = wire::parse(&message)
    {
        assert!(answer.chain.len() <= CNAME_CHAIN + 1);
        // A record is longer than four bytes, and longer still in base64.
        assert!(answer.addresses.len() * 4 <= bytes.len());
    }
});
