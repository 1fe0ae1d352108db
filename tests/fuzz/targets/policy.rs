//! Any bytes are a policy or a list of errors, each with a place inside the text.
#![no_main]

use enforcer::engine::policy::{Source, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = parse(&[Source { path: "fuzz.toml".into(), bytes: bytes.to_vec() }]);
});
