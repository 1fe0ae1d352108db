//! Broken policy files and the exact messages about them: `broken/*.toml` beside `broken/*.expected`.
//!
//! `UPDATE_EXPECTED=1 cargo test --test broken` writes the messages of today; read the difference before you
//! commit it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use enforcer::engine::policy::{self, Source};
use enforcer::sys::clock;

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

/// Numbers that are the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

/// What hands and editors do to a file.
fn mutate(text: &str, dice: &mut Dice) -> Vec<u8> {
    const WORDS: [&str; 24] = [
        "=",
        "[",
        "]",
        "[[rule]]",
        "\"",
        "'",
        "\"\"\"",
        ",",
        "{",
        "}",
        "*",
        "#",
        "\n",
        "\u{202e}",
        "\0",
        "true",
        "-1",
        "1e9",
        "2026-01-01",
        "hosts",
        "action = \"deny\"",
        "\u{feff}",
        "networks = [\"::/0\"]",
        "[rule.scope]",
    ];
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..=dice.below(3) {
        let at = dice.below(lines.len());
        let other = dice.below(lines.len());
        let Some(line) = lines.get(at).cloned() else { break };
        let inside = line.char_indices().map(|(at, _)| at).nth(dice.below(line.chars().count())).unwrap_or(0);
        match dice.below(8) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(other, line),
            2 => lines.swap(at, other),
            3 => lines[at].truncate(inside),
            4 => lines[at].insert_str(inside, WORDS[dice.below(WORDS.len())]),
            5 => lines[at] = line.replacen(['"', '\'', '[', '=', ','], WORDS[dice.below(WORDS.len())], 1),
            6 => lines[at] = line.repeat(1 + dice.below(200)),
            _ => lines.truncate(at),
        }
    }
    let mut bytes = lines.join("\n").into_bytes();
    if dice.below(4) == 0 && !bytes.is_empty() {
        let at = dice.below(bytes.len());
        bytes[at] = dice.below(256) as u8;
    }
    bytes
}

/// Each is a clear error or a policy, soon, and nothing that it says rules a terminal.
#[test]
fn thousands_of_mutated_policies_are_errors_or_policies() {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let texts: Vec<String> = [policies.clone(), policies.join("examples")]
        .iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()))
        .chain(cases())
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    let (mut dice, mut errors, mut accepted, mut slowest) = (Dice(1), 0, 0, 0);
    for round in 0..3_000 {
        let bytes = mutate(&texts[round % texts.len()], &mut dice);
        let begin = clock::boot_ns();
        let said = match policy::parse(&[Source { path: "m.toml".into(), bytes: bytes.clone() }]) {
            Ok(parsed) => {
                accepted += 1;
                parsed.warnings
            }
            Err(found) => {
                errors += 1;
                assert!(!found.is_empty(), "refused without a reason");
                found
            }
        };
        slowest = slowest.max(clock::boot_ns() - begin);
        for one in said {
            let text = one.to_string();
            assert!(!one.hint.is_empty() && !one.message.is_empty(), "{text}");
            let odd = text.chars().find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
            assert_eq!(odd, None, "{text}");
        }
    }
    println!("{errors} refused, {accepted} accepted, the slowest in {} us", slowest / 1000);
    assert!(errors >= 1_000 && accepted >= 100, "{errors} {accepted}");
    assert!(slowest < 5_000_000_000, "a file took {slowest} ns");
}
