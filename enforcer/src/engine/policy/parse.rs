//! All policy files together: every error of every file, or a set of rules.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use enforcer_common::RuleId;
use enforcer_common::limits::RULES;
use toml::Spanned;

use super::diagnostic::{Diagnostic, Report, Severity, Text, escape, quote};
use super::model::{Origin, PolicySet, Rule, rule_id};
use super::pattern::{Pattern, Refusal};
use super::raw::{self, RawRule};
use super::{FILE_BYTES, RULE_NAME_BYTES, lint, network};

/// A policy file as it was read.
#[derive(Clone, Debug)]
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
    for source in files {
        match text(source) {
            Ok(text) => {
                let mut report = Report::new(Text::new(&source.path, text));
                file(&mut report, &mut parsed.set.rules, &mut taken);
                let (new_errors, new_warnings) = report.finish();
                errors.extend(new_errors);
                parsed.warnings.extend(new_warnings);
            }
            Err(error) => errors.extend(error),
        }
    }
    if errors.is_empty() { Ok(parsed) } else { Err(errors) }
}

/// Names by id, with the place of the first rule that has it.
type Taken = HashMap<RuleId, (String, Origin)>;

fn file(report: &mut Report<'_>, rules: &mut Vec<Rule>, taken: &mut Taken) {
    let path: Arc<str> = report.text.file.into();
    for raw in raw::rules(report) {
        let Some(rule) = rule(raw, &path, taken, report) else { continue };
        if rules.len() == RULES {
            return report.error(
                0..0,
                format!("there are more than {RULES} rules in all files together"),
                "join rules of the same action into one with many hosts",
            );
        }
        rules.push(rule);
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

fn rule(raw: RawRule, path: &Arc<str>, taken: &mut Taken, report: &mut Report<'_>) -> Option<Rule> {
    let named = raw.name.map(|name| {
        let position = report.text.position(name.span().start);
        let origin = Origin { file: path.clone(), line: position.line, column: position.column };
        (check_name(&name, &origin, taken, report), name.into_inner(), origin)
    });
    if let Some(description) = &raw.description {
        check_description(description, report);
    }
    let (hosts, host_spans) = each(raw.hosts, Pattern::new, report);
    let (networks, network_spans) = each(raw.networks, network::parse, report);
    let (id, name, origin) = named?;
    let description = raw.description.map(Spanned::into_inner);
    let rule = Rule { id, name, description, action: raw.action?, hosts, networks, origin };
    lint::rule(&rule, &host_spans, &network_spans, report);
    Some(rule)
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
