//! All policy files together: every error of every file, or a set of rules.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use enforcer_common::RuleId;
use enforcer_common::limits::RULES;
use toml::Spanned;

use super::diagnostic::{Diagnostic, Report, Severity, Text, escape, quote};
use super::model::{List, Origin, PolicySet, Rule, rule_id};
use super::pattern::{Pattern, Refusal};
use super::raw::{self, RawList, RawRule};
use super::{FILE_BYTES, RULE_NAME_BYTES, lint, network};

/// A policy file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// As it is shown in messages; files take effect in the order of their paths.
    pub path: String,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub struct Parsed {
    pub set: PolicySet,
    pub warnings: Vec<Diagnostic>,
}

/// Reads all files. One error anywhere, and nothing is accepted: half a policy is not what anybody wrote.
pub fn parse(files: &[Source]) -> Result<Parsed, Vec<Diagnostic>> {
    let mut files: Vec<_> = files.iter().collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let (mut parsed, mut errors, mut taken) = (Parsed::default(), Vec::new(), HashMap::new());
    let (mut reports, mut places) = (Vec::new(), Vec::new());
    for source in files {
        match text(source) {
            Ok(text) => {
                let mut report = Report::new(Text::new(&source.path, text));
                file(&mut report, reports.len(), &mut parsed.set.rules, &mut places, &mut taken);
                reports.push(report);
            }
            Err(error) => errors.extend(error),
        }
    }
    lint::across(&parsed.set.rules, &places, &mut reports);
    for report in reports {
        let (new_errors, new_warnings) = report.finish();
        errors.extend(new_errors);
        parsed.warnings.extend(new_warnings);
    }
    if errors.is_empty() { Ok(parsed) } else { Err(errors) }
}

/// Names by id, with the place of the first rule that has it.
type Taken = HashMap<RuleId, (String, Origin)>;

/// Where a rule and what it names stand in the text of its file.
pub(super) struct Place {
    /// The file, counted.
    pub(super) file: usize,
    pub(super) name: Range<usize>,
    pub(super) hosts: Vec<Range<usize>>,
    pub(super) networks: Vec<Range<usize>>,
}

fn file(
    report: &mut Report<'_>,
    number: usize,
    rules: &mut Vec<Rule>,
    places: &mut Vec<Place>,
    taken: &mut Taken,
) {
    let path: Arc<str> = report.text.file.into();
    for raw in raw::rules(report) {
        let Some((rule, place)) = rule(raw, &path, taken, report) else { continue };
        if rules.len() == RULES {
            return report.error(
                0..0,
                format!("there are more than {RULES} rules in all files together"),
                "join rules of the same action into one with many hosts",
            );
        }
        rules.push(rule);
        places.push(Place { file: number, ..place });
    }
}

/// A file's bytes as text without the byte order mark that some editors write.
fn text(source: &Source) -> Result<&str, Vec<Diagnostic>> {
    if source.bytes.len() > FILE_BYTES {
        return Err(vec![Diagnostic {
            severity: Severity::Error,
            file: source.path.clone(),
            position: None,
            excerpt: None,
            message: format!("the file has {} bytes, more than {FILE_BYTES}", source.bytes.len()),
            hint: "split it into several files".to_owned(),
        }]);
    }
    let bytes = source.bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&source.bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let readable = String::from_utf8_lossy(bytes);
        let mut report = Report::new(Text::new(&source.path, &readable));
        let at = error.valid_up_to();
        let message = format!("the byte 0x{:02x} is not UTF-8", bytes[at]);
        report.error(at..at + 1, message, "save the file as UTF-8 text");
        report.finish().0
    })
}

fn rule(raw: RawRule, path: &Arc<str>, taken: &mut Taken, report: &mut Report<'_>) -> Option<(Rule, Place)> {
    let name_span = raw.name.as_ref().map(Spanned::span);
    let named = raw.name.map(|name| {
        let position = report.text.position(name.span().start);
        let origin = Origin { file: path.clone(), line: position.line, column: position.column };
        (check_name(&name, &origin, taken, report), name.into_inner(), origin)
    });
    if let Some(description) = &raw.description {
        check_description(description, report);
    }
    let (hosts, host_spans) = each(raw.hosts, Pattern::new, report);
    let lists = raw.lists.into_iter().map(|list| list_of(list, path, report)).collect();
    let (networks, network_spans) = each(raw.networks, network::parse, report);
    let (id, name, origin) = named?;
    let description = raw.description.map(Spanned::into_inner);
    let rule = Rule {
        id,
        name,
        description,
        action: raw.action?,
        hosts,
        lists,
        networks,
        spares: Vec::new(),
        conditions: raw.conditions,
        origin,
    };
    lint::rule(&rule, &host_spans, &network_spans, report);
    Some((rule, Place { file: 0, name: name_span?, hosts: host_spans, networks: network_spans }))
}

/// A relative path begins at the directory of the policy file.
fn list_of(raw: RawList, policy: &Arc<str>, report: &Report<'_>) -> List {
    let position = report.text.position(raw.path.span().start);
    let origin = Origin { file: policy.clone(), line: position.line, column: position.column };
    let beside = Path::new(policy.as_ref()).parent().unwrap_or(Path::new(""));
    let path = beside.join(raw.path.get_ref()).to_string_lossy().into();
    List { path, format: raw.format, origin }
}

fn check_name(name: &Spanned<String>, origin: &Origin, taken: &mut Taken, report: &mut Report<'_>) -> RuleId {
    let (text, span) = (name.get_ref(), name.span());
    if text.trim().is_empty() {
        report.error(span.clone(), "the name is empty", "write a short word for what the rule is about");
    } else if text.len() > RULE_NAME_BYTES {
        let message = format!("the name has {} bytes, more than {RULE_NAME_BYTES}", text.len());
        report.error(span.clone(), message, "keep the name short, and say the rest in `description`");
    } else if escape(text) != *text {
        let message = format!("{} has a character that does not print", quote(text));
        report.error(span.clone(), message, "names stand in logs: write printable characters");
    }
    let id = rule_id(text);
    match taken.get(&id) {
        Some((other, place)) if other == text => report.error(
            span,
            format!("{} is the name of another rule, too: {}", quote(text), escape(&place.to_string())),
            "names are unique over all files: rename one of the two",
        ),
        Some((other, place)) => report.error(
            span,
            format!(
                "the names {} and {} ({}) have the same 32-bit hash, by which the kernel knows rules",
                quote(text),
                quote(other),
                escape(&place.to_string())
            ),
            "rename one of the two",
        ),
        None => {
            taken.insert(id, (text.clone(), origin.clone()));
        }
    }
    id
}

fn check_description(description: &Spanned<String>, report: &mut Report<'_>) {
    let text = description.get_ref();
    if text.lines().any(|line| escape(line) != line.replace('\t', " ")) {
        let message = "the description has a character that does not print";
        report.error(description.span(), message, "remove it");
    }
}

/// Every text that can be read, with its place; what cannot be read is reported.
fn each<T>(
    texts: Vec<Spanned<String>>,
    read: impl Fn(&str) -> Result<T, Refusal>,
    report: &mut Report<'_>,
) -> (Vec<T>, Vec<Range<usize>>) {
    let mut all = (Vec::with_capacity(texts.len()), Vec::with_capacity(texts.len()));
    for text in texts {
        match read(text.get_ref()) {
            Ok(one) => {
                all.0.push(one);
                all.1.push(text.span());
            }
            Err(Refusal { message, hint }) => report.error(text.span(), message, hint),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"
# A comment
[[rule]]
name = "no-trackers"
description = """third-party
trackers"""
action = "deny"
hosts = [".tracker.example", "ads-*.example.net", "B\u00fccher.example."]
networks = ["203.0.113.0/24", "2001:db8::/32"]

[[rule]]
name = "exception"
action = "allow"
hosts = ["good.tracker.example"]
"#;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), bytes: text.into() }
    }

    fn rule(name: &str, rest: &str) -> String {
        format!("[[rule]]\nname = \"{name}\"\naction = \"deny\"\n{rest}\n")
    }

    fn errors(files: &[Source]) -> Vec<String> {
        parse(files).unwrap_err().iter().map(ToString::to_string).collect()
    }

    fn warnings(rest: &str) -> Vec<String> {
        let parsed = parse(&[source("w.toml", &rule("r", rest))]).unwrap();
        parsed.warnings.into_iter().map(|warning| warning.message).collect()
    }

    #[test]
    fn a_good_file_is_read_as_written() {
        let parsed = parse(&[source("a.toml", GOOD)]).unwrap();
        assert!(parsed.warnings.is_empty());
        let [first, second] = &parsed.set.rules[..] else { panic!("{:?}", parsed.set) };
        assert_eq!(first.name, "no-trackers");
        assert_eq!(first.id, rule_id("no-trackers"));
        assert_eq!(first.description.as_deref(), Some("third-party\ntrackers"));
        assert_eq!(first.origin.to_string(), "a.toml:4:8");
        let hosts: Vec<_> = first.hosts.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, [".tracker.example", "ads-*.example.net", "xn--bcher-kva.example"]);
        let networks: Vec<_> = first.networks.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["203.0.113.0/24", "2001:db8::/32"]);
        assert_eq!((second.name.as_str(), second.action.as_str()), ("exception", "allow"));
    }

    #[test]
    fn no_file_an_empty_file_and_other_line_ends_are_fine() {
        assert!(parse(&[]).unwrap().set.rules.is_empty());
        assert!(parse(&[source("a.toml", "# nothing\n")]).unwrap().set.rules.is_empty());
        let windows = format!("\u{feff}{}", GOOD.replace('\n', "\r\n"));
        assert_eq!(parse(&[source("a.toml", &windows)]).unwrap().set.rules.len(), 2);
    }

    #[test]
    fn rules_stand_in_the_order_of_file_names() {
        let hosts = "hosts = [\".a.example\"]";
        let files = [source("20.toml", &rule("late", hosts)), source("10.toml", &rule("early", hosts))];
        let names: Vec<_> = parse(&files).unwrap().set.rules.into_iter().map(|rule| rule.name).collect();
        assert_eq!(names, ["early", "late"]);
    }

    #[test]
    fn errors_of_all_files_come_together_and_names_are_unique_over_files() {
        let files = [
            source("a.toml", &rule("same", "hosts = [\".a.example\"]")),
            source("b.toml", &rule("same", "hosts = [\"a b\"]")),
            source("c.toml", "this is not TOML"),
        ];
        let errors = errors(&files);
        assert_eq!(errors.len(), 3, "{errors:#?}");
        assert!(
            errors[0].starts_with("error: b.toml:2:8: `same` is the name of another rule, too: a.toml:2:8")
        );
        assert!(errors[1].starts_with("error: b.toml:4:10: `a b` has a space in it"));
        assert!(errors[2].starts_with("error: c.toml:1:"));
    }

    #[test]
    fn sizes_are_bounded() {
        let big = Source { path: "big.toml".into(), bytes: vec![b'\n'; FILE_BYTES + 1] };
        let want = "error: big.toml: the file has 1048577 bytes, more than 1048576\n  = split it into several files\n";
        assert_eq!(errors(&[big]), [want]);
        assert!(parse(&[Source { path: "a.toml".into(), bytes: vec![b'\n'; FILE_BYTES] }]).is_ok());

        let many = errors(&[source("a.toml", &rule("r", &format!("hosts = [{}]", "1,".repeat(150))))]);
        assert_eq!(many.len(), super::super::DIAGNOSTICS + 1);
        let last = "error: a.toml: 50 more errors are not shown\n  = correct these first\n";
        assert_eq!(many[many.len() - 1], last);
    }

    #[test]
    fn deep_toml_is_refused_without_overflowing_the_stack() {
        for deep in ["[".repeat(100_000), "{a=".repeat(100_000), "a.".repeat(100_000) + "b=1"] {
            assert!(parse(&[source("a.toml", &format!("rule = {deep}"))]).is_err());
            assert!(parse(&[source("a.toml", &deep)]).is_err());
        }
    }

    #[test]
    fn lints() {
        let rows: [(&str, &[&str]); 23] = [
            ("hosts = ['*.a.example']", &["`*.a.example` does not match `a.example` itself"]),
            ("hosts = ['*.a.example', 'a.example']", &[]),
            ("hosts = ['*.a.example', '.example.example', '.a.example']", &[]),
            ("hosts = ['*.a.b.example', '*b.example']", &[]),
            ("hosts = ['*.a.b.example', '.b.example']", &[]),
            ("hosts = ['.a.example']", &[]),
            ("hosts = ['a.example', 'A.example.']", &["`a.example` stands twice in this rule"]),
            ("hosts = ['a**.example', 'a*.example']", &["`a*.example` stands twice in this rule"]),
            ("networks = ['10.0.0.1', '10.0.0.1/32']", &["`10.0.0.1/32` stands twice in this rule"]),
            ("hosts = ['*']", &["`*` denies nearly every host name"]),
            ("hosts = ['*.*']", &["`*.*` denies nearly every host name"]),
            ("hosts = ['.zip']", &["`.zip` denies a whole top-level domain"]),
            (
                "hosts = ['.co.uk']",
                &["`.co.uk` denies all that is below a public suffix: names of many owners"],
            ),
            ("hosts = ['github.io', '.bbc.co.uk']", &[]),
            (
                "hosts = ['.github.io']",
                &["`.github.io` denies all that is below a public suffix: names of many owners"],
            ),
            (
                "hosts = ['*cdn*', 'x?.example', 'www.*']",
                &["`www.*` denies 148 of 275 well-known sites, `www.google.com` among them"],
            ),
            ("hosts = ['localhost']", &["`localhost` leads to addresses that are never denied for a name"]),
            ("hosts = ['.internal']", &["`.internal` denies a whole top-level domain"]),
            ("networks = ['0.0.0.0/0']", &["`0.0.0.0/0` denies every IPv4 address, loopback included"]),
            ("networks = ['::/0']", &["`::/0` denies every IPv6 address, loopback included"]),
            ("networks = ['127.0.0.0/8']", &["`127.0.0.0/8` denies connects of this host to itself"]),
            ("networks = ['::1']", &["`::1/128` denies connects of this host to itself"]),
            ("networks = ['169.254.169.254', '10.0.0.0/8', 'fd00::/8']", &[]),
        ];
        for (rest, want) in rows {
            assert_eq!(warnings(rest), want, "{rest}");
        }
    }

    #[test]
    fn a_diagnostic_is_flat_json() {
        let errors = parse(&[source("a.toml", &rule("r", "hosts = [\"a\u{202e}\tb\", 7]"))]).unwrap_err();
        let json = serde_json::to_value(&errors[1]).unwrap();
        let want = serde_json::json!({
            "severity": "error", "file": "a.toml", "line": 4, "column": 18, "offset": 24, "length": 1,
            "source": "hosts = [\"a\\u{202e} b\", 7]",
            "message": "`hosts` is a list of strings, and this is an integer",
            "hint": "write a string, as in \".tracker.example\"",
        });
        assert_eq!(json, want);
    }

    proptest! {
        #[test]
        fn mutated_policies_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..12)) {
            let mut bytes = GOOD.as_bytes().to_vec();
            for (at, byte, kind) in edits {
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => drop(bytes.drain(at..bytes.len().min(at + usize::from(byte % 16) + 1))),
                }
                if bytes.is_empty() { break }
            }
            if let Err(errors) = parse(&[Source { path: "a.toml".into(), bytes }]) {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    let text = error.to_string();
                    prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{}", text);
                }
            }
        }

        #[test]
        fn any_strings_never_panic(name in any::<String>(), host in any::<String>(), network in any::<String>()) {
            let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
            let rest = format!("hosts = [{}]\nnetworks = [{}]", quoted(&host), quoted(&network));
            let text = format!("[[rule]]\nname = {}\naction = 'deny'\n{rest}", quoted(&name));
            let _ = parse(&[source("a.toml", &text)]);
        }
    }
}
