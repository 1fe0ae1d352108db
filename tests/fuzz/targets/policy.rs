//! Any bytes are a policy that compiles or is refused with reasons, or a list of errors that can be printed.
#![no_main]

use enforcer::engine::compile::Compiled;
use enforcer::engine::policy::{Lists, Source, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let errors = match parse(&[Source { path: "fuzz.toml".into(), bytes: bytes.to_vec() }]) {
        Ok(parsed) => Compiled::new(&parsed.set, &Lists::default(), [1, 2]).err().unwrap_or_default(),
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            errors
        }
    };
    for error in errors {
        let _ = error.to_string();
    }
});
