//! The engine stays pure: no I/O, no clock, no async, nothing of the shell around it. What it needs comes in as
//! an argument, what it wants goes out as a value.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// Each with the reason why the engine has no use for it.
const FORBIDDEN: [(&str, &str); 15] = [
    ("crate::sys", "the world"),
    ("crate::daemon", "the joint"),
    ("crate::cli", "what people type"),
    ("crate::api", "the control socket"),
    ("crate::config", "settings come as arguments"),
    ("std::fs", "files"),
    ("std::io", "I/O"),
    ("std::process", "processes"),
    ("std::env", "the environment"),
    ("std::thread", "threads"),
    ("std::time", "clocks"),
    ("tokio", "async"),
    ("aya", "the kernel"),
    ("tracing", "logs: the caller logs"),
    ("println!", "output"),
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Up to the tests, which may do what they like, and without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).enumerate();
    lines.map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
}

fn offences(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in code(text) {
        for (what, why) in FORBIDDEN {
            let whole_word = line.match_indices(what).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            });
            if whole_word {
                found.push(format!("{number}: `{what}` ({why})"));
            }
        }
    }
    found
}

#[test]
fn the_engine_is_pure() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine");
    let files = sources(&engine);
    assert!(files.len() > 5, "the engine was not found in {}", engine.display());
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        all.extend(offences(&text).iter().map(|offence| format!("{}:{offence}", file.display())));
    }
    assert!(all.is_empty(), "the engine reaches outside:\n{}", all.join("\n"));
}

#[test]
fn an_offence_is_found() {
    assert_eq!(offences("use crate::sys::clock;\n").len(), 1);
    assert_eq!(offences("let t = std::time::Instant::now();").len(), 1);
    assert_eq!(offences("// std::fs is not for us\nlet player = 1;").len(), 0);
    assert_eq!(offences("#[cfg(test)]\nmod tests { use std::fs; }").len(), 0);
}
