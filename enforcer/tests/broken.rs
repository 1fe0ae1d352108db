//! Broken policy files and the exact messages about them: `broken/*.toml` beside `broken/*.expected`.
//!
//! `UPDATE_EXPECTED=1 cargo test --test broken` writes the messages of today; read the difference before you
//! commit it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use enforcer::engine::policy::{self, Source};

fn cases() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    cases.sort();
    cases
}

fn messages(case: &Path) -> String {
    let path = case.file_name().unwrap().to_str().unwrap().to_owned();
    let errors = policy::parse(&[Source { path, bytes: fs::read(case).unwrap() }]).unwrap_err();
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_broken_file_gets_the_expected_messages() {
    let cases = cases();
    assert!(cases.len() >= 25, "{} cases", cases.len());
    for case in cases {
        let (got, file) = (messages(&case), case.with_extension("expected"));
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&file, &got).unwrap();
        }
        let want = fs::read_to_string(&file).unwrap_or_default();
        assert!(got == want, "{}\n--- expected\n{want}\n--- got\n{got}", case.display());
    }
}

#[test]
fn no_message_has_control_characters() {
    for case in cases() {
        let odd = |c: &char| c.is_control() && *c != '\n';
        assert_eq!(messages(&case).chars().find(odd), None, "{}", case.display());
    }
}
