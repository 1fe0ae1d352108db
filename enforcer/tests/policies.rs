//! What we ship is read without an error or a warning, and with all of its comments turned into rules as well.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use enforcer::engine::compile::Compiled;
use enforcer::engine::explain::{self, Asked, Known};
use enforcer::engine::name::Name;
use enforcer::engine::policy::{self, Lists, Parsed, Source};

/// Beats every other on purpose.
const BREAK_GLASS: &str = "break-glass.toml";

fn shipped() -> Vec<PathBuf> {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let mut files = Vec::new();
    for directory in [policies.clone(), policies.join("examples")] {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let with_others = |path: &PathBuf| {
            path.extension().is_some_and(|end| end == "toml") && !path.ends_with(BREAK_GLASS)
        };
        files.extend(entries.filter(with_others));
    }
    files
}

fn parse(edit: impl Fn(String) -> String) -> Parsed {
    let source = |path: PathBuf| Source {
        bytes: edit(fs::read_to_string(&path).unwrap()).into(),
        path: path.display().to_string(),
    };
    let sources: Vec<_> = shipped().into_iter().map(source).collect();
    assert!(sources.len() >= 6);
    let parsed = policy::parse(&sources).unwrap_or_else(|errors| {
        panic!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    });
    let warnings: Vec<_> = parsed.warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.is_empty(), "{}", warnings.join("\n"));
    parsed
}

#[test]
fn policies_have_no_errors_and_no_warnings() {
    assert_eq!(parse(|text| text).set.rules.len(), 7);
}

#[test]
fn rules_in_comments_are_right_too() {
    /// Removes the `# ` of lines that are TOML: a header, or a key of a rule.
    fn uncomment(line: &str) -> &str {
        let Some(code) = line.strip_prefix("# ") else { return line };
        let key = |key| code.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with("= "));
        let is_code =
            code == "[[rule]]" || ["name", "description", "action", "hosts", "networks"].into_iter().any(key);
        if is_code { code } else { line }
    }
    let parsed = parse(|text| text.lines().map(uncomment).collect::<Vec<_>>().join("\n"));
    assert_eq!(parsed.set.rules.len(), 12);
}

#[test]
fn examples_do_what_their_comments_say() {
    let compiled = Compiled::new(&parse(|text| text).set, &Lists::default(), [1, 2]).unwrap();
    let rows = [
        ("doubleclick.net", Some("trackers")),
        ("stats.g.doubleclick.net", Some("trackers")),
        ("pagead2.example.com", Some("trackers")),
        ("xmr-eu1.example.org", Some("crypto-mining")),
        ("xmr.pool.example.com", Some("crypto-mining")),
        ("stratum.example.org", Some("crypto-mining")),
        ("mozilla.cloudflare-dns.com", Some("encrypted-dns")),
        ("example.com", None),
        ("stratumfoundation.org", None),
    ];
    for (name, rule) in rows {
        let claims = compiled.claims(&Name::from_text(name).unwrap());
        assert_eq!(compiled.rule_name(claims.deny), rule, "{name}");
    }
    let audited = compiled.claims(&Name::from_text("telemetry-eu.example.com").unwrap()).audit;
    assert_eq!(compiled.rule_name(audited), Some("telemetry"));
}

/// Also what only a network denies, and what a daemon before this one left denied.
#[test]
fn break_glass_lets_everything_through() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples").join(BREAK_GLASS);
    let source = |path: &PathBuf| Source { path: path.display().to_string(), bytes: fs::read(path).unwrap() };
    let alone = policy::parse(&[source(&path)]).unwrap();
    assert_eq!(
        alone.warnings.len(),
        3,
        "that it allows every name and both kinds of networks: {:?}",
        alone.warnings
    );
    let all: Vec<Source> = shipped().iter().chain([&path]).map(source).collect();
    let compiled = Compiled::new(&policy::parse(&all).unwrap().set, &Lists::default(), [1, 2]).unwrap();
    let verdict = |what: &str| {
        let known = Known { compiled: &compiled, running: None };
        let said = explain::explain(&Asked::new(what).unwrap(), &known);
        (said.verdict, said.rule)
    };
    for what in ["stats.g.doubleclick.net", "localhost", "169.254.169.254", "1.1.1.1", "2001:db8::1"] {
        assert_eq!(verdict(what), ("allow".to_owned(), Some("break-glass".to_owned())), "{what}");
    }
}
