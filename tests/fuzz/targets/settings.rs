//! Any text is a filter that can be run, or an error that shows its place; and settings, or a list of errors.
#![no_main]

use std::sync::LazyLock;

use enforcer::config;
use enforcer::engine::filter::Filter;
use enforcer::engine::record::Event;
use libfuzzer_sys::fuzz_target;

static EVENT: LazyLock<Event> = LazyLock::new(|| {
    serde_json::from_str(
        r#"{"event":"net_tcp_connect","time":"2026-11-23T12:08:32.1Z","dstIP":"192.0.2.1","dstPort":443,
            "results":["a.example"],"srcIP":null,"srcPort":0,"protocol":"tcp","pid":1,"tid":1,"ppid":1,"uid":0,"gid":0,
            "comm":"curl","executable":null,"cgroup":null,"layer":"lsm_connect","verdict":"deny","rule":"r"}"#,
    )
    .expect("an event")
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Filter>() {
        Ok(filter) => {
            filter.matches(&EVENT);
        },
        Err(error) => {
            assert!((1..=text.chars().count() + 1).contains(&error.column), "{error}");
            assert!(!error.hint.is_empty(), "{error}");
        }
    }
    if let Err(errors) = config::parse("fuzz.toml", text) {
        assert!(!errors.is_empty(), "refused without a reason");
        for error in errors {
            let _ = error.to_string();
        }
    }
});
