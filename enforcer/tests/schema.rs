//! The JSON Schema of policy files, held against files: it takes what is right, and refuses what a schema can see.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;

fn schema() -> Validator {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.schema.json");
    jsonschema::validator_for(&serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()).unwrap()
}

fn files(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    files.sort();
    files
}

fn as_json(text: &str) -> Option<serde_json::Value> {
    let table: toml::Table = text.parse().ok()?;
    serde_json::to_value(table).ok()
}

#[test]
fn every_policy_that_we_ship_is_valid() {
    let (schema, mut count) = (schema(), 0);
    for path in files("../policies").into_iter().chain(files("../policies/examples")) {
        let text = fs::read_to_string(&path).unwrap();
        let value = as_json(&text).unwrap();
        let errors: Vec<_> = schema.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        count += 1;
    }
    assert!(count >= 6);
}

#[test]
fn everything_that_a_rule_can_say_is_valid() {
    let text = "[[rule]]\nname = 'r'\ndescription = 'd'\naction = 'audit'\n\
                hosts = ['.a.example', '*.b', 'x{a,b}[0-9]?*.example', 'b\u{fc}cher.example', '_sip._tcp.x']\n\
                networks = ['203.0.113.0/24', '2001:db8::/32', '::1', '192.0.2.1']\n\
                lists = [{ path = 'l', format = 'domains' }, { path = 'l', format = 'hosts' }, { path = 'l', format = 'rpz' },\n\
                { path = '/l', format = 'adblock' }, { path = 'l.gz', format = 'networks' }]\n[[rule]]\nname = 's'\naction = 'deny'\nhosts = ['x']\nshared = 'allow'\n";
    let source = enforcer::engine::policy::Source { path: "p.toml".into(), bytes: text.into() };
    assert!(enforcer::engine::policy::parse(&[source]).is_ok());
    let value = as_json(text).unwrap();
    let errors: Vec<_> = schema().iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// Kinds of mistakes that are about shapes. The others (duplicate names, globs that do not close, files that are not
/// TOML) are beyond a schema, or no values at all.
const SEEN: [&str; 15] = [
    "addresses-in-hosts",
    "bad-actions",
    "hosts-in-networks",
    "key-outside-rule",
    "lists",
    "long-pattern",
    "missing-name",
    "no-destination",
    "rule-not-table",
    "rule-single-brackets",
    "shared",
    "unknown-file-key",
    "unknown-key",
    "urls",
    "wrong-types",
];

#[test]
fn broken_files_are_refused_as_far_as_a_schema_can_see() {
    let (schema, mut refused) = (schema(), Vec::new());
    for path in files("tests/broken") {
        let Some(value) = fs::read_to_string(&path).ok().as_deref().and_then(as_json) else { continue };
        if !schema.is_valid(&value) {
            refused.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
    }
    let missed: Vec<_> = SEEN.iter().filter(|kind| !refused.contains(&(**kind).to_owned())).collect();
    assert!(missed.is_empty(), "not refused: {missed:?}; refused: {refused:?}");
}
