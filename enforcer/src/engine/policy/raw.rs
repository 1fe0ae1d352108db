//! From TOML to keys and values with their places. Walked by hand instead of through serde, which stops at
//! the first error.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, Error};

use super::conditions;
use super::diagnostic::{Report, quote};
use super::lists::ListFormat;
use super::model::{Action, Conditions};

/// A rule with the types right and nothing else checked. What is absent, or was reported, is `None` or missing.
#[derive(Debug)]
pub(super) struct RawRule {
    pub(super) name: Option<Spanned<String>>,
    pub(super) description: Option<Spanned<String>>,
    pub(super) action: Option<Action>,
    pub(super) hosts: Vec<Spanned<String>>,
    pub(super) lists: Vec<RawList>,
    pub(super) networks: Vec<Spanned<String>>,
    pub(super) conditions: Conditions,
}

/// A list file, not looked at yet.
#[derive(Debug)]
pub(super) struct RawList {
    pub(super) path: Spanned<String>,
    pub(super) format: ListFormat,
}

pub(super) const KEYS: [&str; 10] =
    ["name", "description", "action", "hosts", "lists", "networks", "ports", "protocols", "shared", "scope"];
/// What names destinations; one of them must be there.
const DESTINATIONS: [&str; 3] = ["hosts", "lists", "networks"];
const LIST_EXAMPLE: &str = "lists = [{ path = \"lists/trackers.txt\", format = \"domains\" }]";

type Entry<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>);

/// Reads the rules of a file. Syntax errors hide everything else of the file.
pub(super) fn rules(report: &mut Report<'_>) -> Vec<RawRule> {
    let (document, errors) = DeTable::parse_recoverable(report.text.text);
    if !errors.is_empty() {
        syntax(errors, report);
        return Vec::new();
    }
    let mut rules = Vec::new();
    for (key, value) in in_file_order(document.get_ref()) {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("rule", DeValue::Array(elements)) => {
                rules.extend(elements.iter().filter_map(|element| element_rule(element, report)));
            }
            ("rule", other) => report.error(
                value.span(),
                format!("`rule` is {}, not a list of rules", kind(other)),
                "write `[[rule]]` above the keys of each rule, with two brackets on both sides",
            ),
            (key_text, _) => unknown_in_file(key_text, key.span(), report),
        }
    }
    rules
}

fn element_rule(element: &Spanned<DeValue<'_>>, report: &mut Report<'_>) -> Option<RawRule> {
    match element.get_ref() {
        DeValue::Table(table) => Some(rule(table, element.span(), report)),
        other => {
            let message = format!("a rule is a table, not {}", kind(other));
            report.error(element.span(), message, "write `[[rule]]` above the keys of each rule");
            None
        }
    }
}

fn rule(table: &DeTable<'_>, span: Range<usize>, report: &mut Report<'_>) -> RawRule {
    let mut raw = RawRule {
        name: None,
        description: None,
        action: None,
        hosts: Vec::new(),
        lists: Vec::new(),
        networks: Vec::new(),
        conditions: Conditions::default(),
    };
    // Keys that are there, or were meant: a key that is misspelt is one mistake, not two.
    let mut given = Vec::new();
    for (key, value) in in_file_order(table) {
        let text = key.get_ref().as_ref();
        given.extend(closest(text, KEYS));
        match text {
            "name" => raw.name = string("name", "\"no-trackers\"", value, report),
            "description" => raw.description = string("description", "\"in words\"", value, report),
            "action" => raw.action = action(value, report),
            "hosts" => raw.hosts = strings("hosts", ".tracker.example", value, report),
            "lists" => raw.lists = lists(value, report),
            "networks" => raw.networks = strings("networks", "203.0.113.0/24", value, report),
            "ports" => raw.conditions.ports = conditions::ports(value, report),
            "protocols" => raw.conditions.protocols = conditions::protocols(value, report),
            "shared" => raw.conditions.unshared = shared(value, report),
            "scope" => raw.conditions.scope = conditions::scope(value, report),
            other => unknown_in_rule(other, key.span(), report),
        }
    }
    missing(table, &given, span, report);
    if raw.conditions.unshared {
        only_hosts(table, &raw, report);
    }
    raw
}

/// Whether a shared address is let through.
fn shared(value: &Spanned<DeValue<'_>>, report: &mut Report<'_>) -> bool {
    let Some(text) = string("shared", "\"deny\"", value, report) else { return false };
    match text.get_ref().as_str() {
        "deny" => false,
        "allow" => true,
        other => {
            let instead = match closest(other, ["deny", "allow"]) {
                Some(close) => format!("did you mean \"{close}\"?"),
                None => {
                    "write \"deny\", or \"allow\" to let an address pass that other names use, too".into()
                }
            };
            report.error(text.span(), format!("{} is not what `shared` can be", quote(other)), instead);
            false
        }
    }
}

/// `shared = "allow"` is about what names lead to, and about rules that refuse.
fn only_hosts(table: &DeTable<'_>, raw: &RawRule, report: &mut Report<'_>) {
    let span = |key: &str| table.get(key).map_or(0..0, Spanned::span);
    if raw.action == Some(Action::Allow) {
        report.error(
            span("shared"),
            "`shared = \"allow\"` in a rule that allows says nothing",
            "remove `shared`: an exception lets shared addresses pass as well",
        );
    }
    let listed = raw.lists.iter().any(|list| list.format == ListFormat::Networks);
    for key in [(!raw.networks.is_empty()).then_some("networks"), listed.then_some("lists")] {
        let Some(key) = key else { continue };
        report.error(
            span(key),
            "a rule with `shared = \"allow\"` names networks, which are refused whatever leads to them",
            "write the networks into a rule of their own, without `shared`",
        );
    }
}

/// Reports what a rule cannot do without.
fn missing(table: &DeTable<'_>, given: &[&str], span: Range<usize>, report: &mut Report<'_>) {
    for (key, instead) in [
        ("name", "add `name = \"...\"`: it stands in every event that the rule causes"),
        ("action", "add `action = \"deny\"`, or \"allow\" for an exception, or \"audit\" to report only"),
    ] {
        if !given.contains(&key) {
            report.error(span.clone(), format!("the rule has no `{key}`"), instead);
        }
    }
    let names_any = DESTINATIONS.iter().any(|key| given.contains(key));
    if !names_any || is_empty(table) {
        report.error(
            span,
            "the rule names no destination",
            "add `hosts = [\".tracker.example\"]` or `networks = [\"203.0.113.0/24\"]`",
        );
    }
}

/// Whether the lists that a rule has are lists, but with nothing in them.
fn is_empty(table: &DeTable<'_>) -> bool {
    let mut lists = DESTINATIONS.iter().filter_map(|key| table.get(*key)).peekable();
    lists.peek().is_some()
        && lists.all(|list| list.get_ref().as_array().is_some_and(|array| array.is_empty()))
}

/// A table is ordered by key; people read files from the top.
pub(super) fn in_file_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Entry<'a, 'i>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn action(value: &Spanned<DeValue<'_>>, report: &mut Report<'_>) -> Option<Action> {
    let text = string("action", "\"deny\"", value, report)?;
    let found = Action::ALL.into_iter().find(|action| action.as_str() == text.get_ref());
    if found.is_none() {
        let instead = match closest(text.get_ref(), Action::ALL.map(Action::as_str)) {
            Some(close) => format!("did you mean \"{close}\"?"),
            None => "write \"deny\", \"allow\" (an exception) or \"audit\" (report only)".to_owned(),
        };
        report.error(text.span(), format!("{} is not an action", quote(text.get_ref())), instead);
    }
    found
}

fn string(
    key: &str,
    example: &str,
    value: &Spanned<DeValue<'_>>,
    report: &mut Report<'_>,
) -> Option<Spanned<String>> {
    match value.get_ref() {
        DeValue::String(text) => Some(Spanned::new(value.span(), text.clone().into_owned())),
        other => {
            let message = format!("`{key}` is {}, not a string", kind(other));
            report.error(value.span(), message, format!("write a string, as in `{key} = {example}`"));
            None
        }
    }
}

fn strings(
    key: &str,
    example: &str,
    value: &Spanned<DeValue<'_>>,
    report: &mut Report<'_>,
) -> Vec<Spanned<String>> {
    let DeValue::Array(elements) = value.get_ref() else {
        let instead = match value.get_ref() {
            DeValue::String(text) => {
                format!("put it in brackets: {}", quote(&format!("{key} = [\"{text}\"]")))
            }
            _ => format!("write a list of strings, as in `{key} = [\"{example}\"]`"),
        };
        let message = format!("`{key}` is {}, not a list of strings", kind(value.get_ref()));
        report.error(value.span(), message, instead);
        return Vec::new();
    };
    let mut texts = Vec::with_capacity(elements.len());
    for element in elements.iter() {
        match element.get_ref() {
            DeValue::String(text) => texts.push(Spanned::new(element.span(), text.clone().into_owned())),
            other => {
                let message = format!("`{key}` is a list of strings, and this is {}", kind(other));
                report.error(element.span(), message, format!("write a string, as in \"{example}\""));
            }
        }
    }
    texts
}

fn lists(value: &Spanned<DeValue<'_>>, report: &mut Report<'_>) -> Vec<RawList> {
    let DeValue::Array(elements) = value.get_ref() else {
        let message = format!("`lists` is {}, not a list of tables", kind(value.get_ref()));
        report.error(value.span(), message, format!("write `{LIST_EXAMPLE}`"));
        return Vec::new();
    };
    elements.iter().filter_map(|element| list(element, report)).collect()
}

fn list(element: &Spanned<DeValue<'_>>, report: &mut Report<'_>) -> Option<RawList> {
    let DeValue::Table(table) = element.get_ref() else {
        let message = format!("a list file is a table, and this is {}", kind(element.get_ref()));
        report.error(element.span(), message, format!("write `{LIST_EXAMPLE}`"));
        return None;
    };
    let (mut path, mut format) = (None, None);
    for (key, value) in in_file_order(table) {
        match key.get_ref().as_ref() {
            "path" => path = Some(list_path(value, report)),
            "format" => format = Some(list_format(value, report)),
            other => {
                let message = format!("{} is not a key of a list", quote(other));
                report.error(key.span(), message, "a list has `path` and `format`");
            }
        }
    }
    for (key, there) in [("path", path.is_some()), ("format", format.is_some())] {
        if !there {
            report.error(
                element.span(),
                format!("the list has no `{key}`"),
                format!("write `{LIST_EXAMPLE}`"),
            );
        }
    }
    Some(RawList { path: path??, format: format?? })
}

fn list_path(value: &Spanned<DeValue<'_>>, report: &mut Report<'_>) -> Option<Spanned<String>> {
    let path = string("path", "\"lists/trackers.txt\"", value, report)?;
    if path.get_ref().is_empty() || path.get_ref().contains('\0') {
        report.error(path.span(), "this is not the path of a file", "write it as in \"lists/trackers.txt\"");
        return None;
    }
    Some(path)
}

fn list_format(value: &Spanned<DeValue<'_>>, report: &mut Report<'_>) -> Option<ListFormat> {
    let text = string("format", "\"domains\"", value, report)?;
    let found = ListFormat::ALL.into_iter().find(|format| format.as_str() == text.get_ref());
    if found.is_none() {
        let formats = ListFormat::ALL.map(ListFormat::as_str);
        let instead = match closest(text.get_ref(), formats) {
            Some(close) => format!("did you mean \"{close}\"?"),
            None => {
                format!("a format is one of {}", formats.map(|format| format!("\"{format}\"")).join(", "))
            }
        };
        report.error(text.span(), format!("{} is no format of lists", quote(text.get_ref())), instead);
    }
    found
}

fn unknown_in_file(key: &str, span: Range<usize>, report: &mut Report<'_>) {
    if KEYS.contains(&key) {
        let message = format!("`{key}` stands outside of a rule");
        return report.error(span, message, "write `[[rule]]` on a line above it");
    }
    let instead = match key {
        "default" | "mode" | "never_deny" | "ttl_floor" | "ttl_cap" | "require_lsm" | "on_stop"
        | "on_fault" => "settings of the daemon stand in `enforcer.toml`",
        _ if closest(key, ["rule"]).is_some() => "did you mean `[[rule]]`?",
        _ => "a policy file has nothing but rules: `[[rule]]`, then its keys",
    };
    report.error(span, format!("{} is not a key of a policy file", quote(key)), instead);
}

fn unknown_in_rule(key: &str, span: Range<usize>, report: &mut Report<'_>) {
    let instead = match closest(key, KEYS) {
        Some(close) => format!("did you mean `{close}`?"),
        None => format!("a rule has {}", KEYS.map(|known| format!("`{known}`")).join(", ")),
    };
    report.error(span, format!("{} is not a key of a rule", quote(key)), instead);
}

/// Reports what TOML refuses: one error a line, and nothing behind an error that shifts what follows it.
fn syntax(mut errors: Vec<Error>, report: &mut Report<'_>) {
    let shifts = |error: &Error| {
        ["unclosed", "missing comma", "unexpected"].iter().any(|shift| error.message().starts_with(shift))
    };
    let span = |error: &Error| error.span().unwrap_or(0..0);
    errors.sort_by_key(|error| (report.text.line(span(error).start), !shifts(error), span(error).start));
    let mut last_line = None;
    for error in errors {
        let line = Some(report.text.line(span(&error).start));
        if line != last_line {
            let message = format!("not TOML: {}", error.message());
            report.error(span(&error), message, syntax_hint(error.message()));
        }
        if shifts(&error) {
            return;
        }
        last_line = line;
    }
}

fn syntax_hint(message: &str) -> &'static str {
    const HINTS: [(&str, &str); 12] = [
        ("string values must be quoted", "put it in double quotes"),
        ("invalid basic string, expected non", "remove the character, it does not print"),
        ("invalid basic string", "close the string with `\"` on the same line"),
        ("invalid literal string", "close the string with `'` on the same line"),
        ("missing escaped value", "in double quotes `\\` begins an escape: double it, or use single quotes"),
        ("too few unicode", "in double quotes `\\` begins an escape: double it, or use single quotes"),
        ("missing comma", "put a comma between elements, and `]` behind the last one"),
        ("unexpected `=` in array", "close the list above with `]`"),
        ("unclosed array, ", "close the list with `]`"),
        ("unclosed array table", "write `[[rule]]`, with two brackets on both sides"),
        ("duplicate key", "a key stands once in a rule: remove one, or begin a new `[[rule]]`"),
        ("unexpected key or value", "write one `key = value` a line"),
    ];
    let known = HINTS.iter().find(|(start, _)| message.starts_with(start));
    known.map_or("see https://toml.io for how TOML is written", |(_, hint)| hint)
}

pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The word that was probably meant: at most two edits away, and fewer than half of its letters.
pub(super) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let candidates = known.into_iter().filter(|candidate| candidate.len().abs_diff(word.len()) <= 2);
    candidates
        .map(|candidate| (edits(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2 && distance * 2 < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
