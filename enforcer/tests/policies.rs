//! What we ship is read without an error or a warning, and with all of its comments turned into rules as well.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use enforcer::engine::compile::Compiled;
use enforcer::engine::explain::{self, Asked, Known};
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
    assert_eq!(parse(|text| text).set.rules.len(), 12);
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
    assert_eq!(parsed.set.rules.len(), 16);
}

/// What each example says about a name or an address: action, rule and conditions; nothing, if it does not name it.
#[rustfmt::skip]
const CLAIMS: &[(&str, &str, &str)] = &[
    ("build-server.toml", "static.crates.io", "allow build-registries for ports 443; protocols tcp"),
    ("build-server.toml", "registry.npmjs.org", "allow build-registries for ports 443; protocols tcp"),
    ("build-server.toml", "github.com", "allow build-forges for ports 22, 443; protocols tcp"),
    ("build-server.toml", "de.archive.ubuntu.com", "allow build-distributions for ports 80, 443; protocols tcp"),
    ("build-server.toml", "gist.github.com", ""),
    ("build-server.toml", "evil.crates.io.example", ""),
    ("build-server.toml", "192.0.2.1", ""),
    ("cloud-metadata.toml", "169.254.169.254", "deny cloud-metadata"),
    ("cloud-metadata.toml", "fd00:ec2::254", "deny cloud-metadata"),
    ("cloud-metadata.toml", "100.100.100.200", "deny cloud-metadata"),
    ("cloud-metadata.toml", "168.63.129.16", ""),
    ("crypto-mining.toml", "eu.f2pool.com", "deny crypto-mining"),
    ("crypto-mining.toml", "xmr-eu1.example.org", "deny crypto-mining"),
    ("crypto-mining.toml", "xmr.pool.example.com", "deny crypto-mining"),
    ("crypto-mining.toml", "stratum.example.org", "deny crypto-mining"),
    ("crypto-mining.toml", "stratumfoundation.org", ""),
    ("one-service.toml", "api.payments.example", "allow billing-may for ports 443; protocols tcp; units billing.service"),
    ("one-service.toml", "127.0.0.1", "allow billing-local for units billing.service"),
    ("one-service.toml", "192.0.2.1", "deny billing-may-not for units billing.service"),
    ("one-service.toml", "2001:db8::1", "deny billing-may-not for units billing.service"),
    ("one-service.toml", "other.payments.example", ""),
    ("telemetry.toml", "telemetry-eu.example.com", "audit telemetry"),
    ("telemetry.toml", "popcon.debian.org", "audit telemetry"),
    ("telemetry.toml", "debian.org", ""),
    ("trackers.toml", "doubleclick.net", "deny trackers"),
    ("trackers.toml", "stats.g.doubleclick.net", "deny trackers"),
    ("trackers.toml", "pagead2.example.com", "deny trackers"),
    ("trackers.toml", "google.com", ""),
];

#[test]
fn examples_do_what_their_comments_say() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples");
    for path in shipped().iter().filter(|path| path.starts_with(&examples)) {
        let file = path.file_name().unwrap().to_str().unwrap();
        let source = Source { path: file.to_owned(), bytes: fs::read(path).unwrap() };
        let compiled =
            Compiled::new(&policy::parse(&[source]).unwrap().set, &Lists::default(), [1, 2]).unwrap();
        let said = |what: &str| {
            let known = Known { compiled: &compiled, running: None };
            let says = explain::explain(&Asked::new(what).unwrap(), &known).rules;
            let conditions = |conditions: &String| format!(" for {conditions}");
            says.first().map_or_else(String::new, |first| {
                let conditions = first.conditions.as_ref().map(conditions).unwrap_or_default();
                format!("{} {}{conditions}", first.action, first.rule)
            })
        };
        let rows: Vec<_> = CLAIMS.iter().filter(|(of, ..)| *of == file).collect();
        rows.iter().for_each(|(_, what, want)| assert_eq!(said(what), *want, "{file}: {what}"));
        let named = rows.iter().filter(|(.., want)| !want.is_empty()).count();
        assert!(0 < named && named < rows.len(), "{file}: what it names and what it does not is to be shown");
    }
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
