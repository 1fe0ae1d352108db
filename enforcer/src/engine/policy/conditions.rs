//! What a rule says beside its destinations: ports, protocols, and who it applies to.

use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::DeValue;

use super::diagnostic::{Report, quote};
use super::model::{Account, Scope};
use super::raw::{closest, in_file_order, kind};

/// Protocols with a name. Every other is written as its number.
pub(super) const PROTOCOLS: [(&str, u16); 7] =
    [("tcp", 6), ("udp", 17), ("sctp", 132), ("dccp", 33), ("udplite", 136), ("icmp", 1), ("icmpv6", 58)];

const SCOPE: [&str; 5] = ["users", "groups", "units", "cgroups", "executables"];

/// Ends of the names of units whose processes have a control group of their own.
const UNITS: [&str; 3] = [".service", ".slice", ".scope"];
/// Longest component of a path (NAME_MAX), and longest path (PATH_MAX) without its NUL.
const COMPONENT: usize = 255;
const PATH: usize = 4095;
/// Components that the kernel side follows.
const DEPTH: usize = 63;

type Value<'i> = Spanned<DeValue<'i>>;

/// Sorted, without overlap; nothing where something is wrong.
pub(super) fn ports(value: &Value<'_>, report: &mut Report<'_>) -> Vec<RangeInclusive<u16>> {
    let example = "ports = [443, \"8000-8999\"]";
    let mut ranges: Vec<_> = elements("ports", "every port", example, value, report)
        .filter_map(|element| port_range(element, report))
        .collect();
    ranges.sort_by_key(|range| *range.start());
    let mut joined: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=(*last.end()).max(*range.end());
            }
            _ => joined.push(range),
        }
    }
    joined
}

fn port_range(element: &Value<'_>, report: &mut Report<'_>) -> Option<RangeInclusive<u16>> {
    const HINT: &str = "ports are numbers from 1 to 65535, and ranges such as \"8000-8999\"";
    let (text, range) = match element.get_ref() {
        DeValue::Integer(number) => (number.to_string(), number_of(element).map(|port| (port, port))),
        DeValue::String(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let port = |text: &str| text.trim().parse::<u16>().ok().map(u64::from);
            (text.to_string(), port(first).zip(port(last)))
        }
        other => {
            let message = format!("`ports` is a list of ports, and this is {}", kind(other));
            report.error(element.span(), message, HINT);
            return None;
        }
    };
    let port = |number: u64| u16::try_from(number).ok().filter(|port| *port != 0);
    match range.map(|(first, last)| (port(first), port(last))) {
        Some((Some(first), Some(last))) if first <= last => Some(first..=last),
        Some((Some(first), Some(last))) => {
            let message = format!("the range {} ends before it begins", quote(&text));
            report.error(element.span(), message, format!("write \"{last}-{first}\""));
            None
        }
        _ => {
            report.error(element.span(), format!("{} is not a port", quote(&text)), HINT);
            None
        }
    }
}

/// Sorted, each once.
pub(super) fn protocols(value: &Value<'_>, report: &mut Report<'_>) -> Vec<u16> {
    let example = "protocols = [\"tcp\", \"udp\"]";
    let mut all: Vec<u16> = elements("protocols", "every protocol", example, value, report)
        .filter_map(|element| protocol(element, report))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn protocol(element: &Value<'_>, report: &mut Report<'_>) -> Option<u16> {
    let (text, known) = match element.get_ref() {
        DeValue::Integer(number) => (
            number.to_string(),
            number_of(element).and_then(|number| u8::try_from(number).ok()).map(u16::from),
        ),
        DeValue::String(text) => {
            let known = PROTOCOLS.into_iter().find(|(name, _)| *name == text.as_ref());
            (text.to_string(), known.map(|(_, number)| number))
        }
        other => {
            let message = format!("`protocols` is a list of protocols, and this is {}", kind(other));
            report.error(element.span(), message, "write \"tcp\", \"udp\", or the number of another");
            return None;
        }
    };
    if known.is_none() {
        let names = PROTOCOLS.map(|(name, _)| name);
        let hint = match closest(&text, names) {
            Some(close) => format!("did you mean \"{close}\"?"),
            None => format!(
                "write {}, or the number (0 to 255) of another",
                names.map(|name| format!("\"{name}\"")).join(", ")
            ),
        };
        report.error(element.span(), format!("{} is not a protocol", quote(&text)), hint);
    }
    known
}

/// Who the rule applies to.
pub(super) fn scope(value: &Value<'_>, report: &mut Report<'_>) -> Scope {
    const EXAMPLE: &str =
        "write `[rule.scope]` below the rule's keys, then `users = [\"alice\"]` or another list";
    let mut scope = Scope::default();
    let DeValue::Table(table) = value.get_ref() else {
        let message = format!("`scope` is {}, not a table", kind(value.get_ref()));
        report.error(value.span(), message, EXAMPLE);
        return scope;
    };
    if table.is_empty() {
        report.error(value.span(), "the scope says nothing", "remove it to cover everyone, or name somebody");
    }
    for (key, value) in in_file_order(table) {
        let text = key.get_ref().as_ref();
        match text {
            "users" => scope.users = accounts("users", "alice", value, report),
            "groups" => scope.groups = accounts("groups", "staff", value, report),
            "units" => scope.units = texts("units", "nginx.service", value, report, unit),
            "cgroups" => scope.cgroups = texts("cgroups", "/system.slice", value, report, cgroup),
            "executables" => {
                scope.executables = texts("executables", "/usr/bin/curl", value, report, executable)
            }
            other => {
                let hint = match closest(other, SCOPE) {
                    Some(close) => format!("did you mean `{close}`?"),
                    None => format!("a scope has {}", SCOPE.map(|known| format!("`{known}`")).join(", ")),
                };
                report.error(key.span(), format!("{} is not a key of a scope", quote(other)), hint);
            }
        }
    }
    scope
}

fn accounts(key: &str, example: &str, value: &Value<'_>, report: &mut Report<'_>) -> Vec<Account> {
    let hint = format!("write a name or a number, as in `{key} = [\"{example}\", 1000]`");
    let mut all: Vec<Account> =
        elements(key, "everyone", &format!("{key} = [\"{example}\", 1000]"), value, report)
            .filter_map(|element| {
                let account = match element.get_ref() {
                    DeValue::Integer(_) => {
                        let number = number_of(element).and_then(|number| u32::try_from(number).ok());
                        number.filter(|id| *id != u32::MAX).map(Account::Id)
                    }
                    DeValue::String(text) if is_name(text) => Some(Account::Name(text.to_string())),
                    _ => None,
                };
                if account.is_none() {
                    report.error(
                        element.span(),
                        format!("this is no name and no number of `{key}`"),
                        hint.clone(),
                    );
                }
                account
            })
            .collect();
    all.sort();
    all.dedup();
    all
}

/// As the databases of accounts take them, roughly; digits alone are a number that somebody quoted.
fn is_name(text: &str) -> bool {
    let all = |fits: fn(char) -> bool| text.chars().all(fits);
    !text.is_empty()
        && text.len() <= COMPONENT
        && !all(|c| c.is_ascii_digit())
        && all(|c| !c.is_control() && !":,/ ".contains(c))
}

type Check = fn(&str) -> Result<(), (String, String)>;

fn texts(key: &str, example: &str, value: &Value<'_>, report: &mut Report<'_>, check: Check) -> Vec<String> {
    let mut all: Vec<String> = elements(key, "everyone", &format!("{key} = [\"{example}\"]"), value, report)
        .filter_map(|element| match element.get_ref() {
            DeValue::String(text) => match check(text) {
                Ok(()) => Some(text.to_string()),
                Err((message, hint)) => {
                    report.error(element.span(), message, hint);
                    None
                }
            },
            other => {
                let message = format!("`{key}` is a list of strings, and this is {}", kind(other));
                report.error(element.span(), message, format!("write a string, as in \"{example}\""));
                None
            }
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

fn unit(text: &str) -> Result<(), (String, String)> {
    let known = UNITS.iter().any(|end| text.len() > end.len() && text.ends_with(end));
    if text.contains(['/', '\0']) || text.len() > COMPONENT || !known {
        let message = format!("{} is not the name of a unit that has processes", quote(text));
        return Err((
            message,
            "write it with its type: \"nginx.service\", \"user.slice\" or a scope".to_owned(),
        ));
    }
    if text.ends_with("@.service") {
        let message = format!("{} is a template, which has no processes", quote(text));
        return Err((message, "name its instances, or the slice they are in".to_owned()));
    }
    Ok(())
}

fn cgroup(text: &str) -> Result<(), (String, String)> {
    if text == "/" {
        let hint = "remove it: a rule without a scope covers everyone".to_owned();
        return Err(("every process is in the control group \"/\"".to_owned(), hint));
    }
    let hint = "write it as in \"/system.slice/nginx.service\": from the root of the control groups, without `/` at its end";
    path(text, hint)
}

fn executable(text: &str) -> Result<(), (String, String)> {
    path(text, "write the whole path of the file, as in \"/usr/bin/curl\"")
}

fn path(text: &str, hint: &str) -> Result<(), (String, String)> {
    let refuse = |message: String| Err((message, hint.to_owned()));
    let Some(rest) = text.strip_prefix('/') else {
        return refuse(format!("{} is not an absolute path", quote(text)));
    };
    let mut components = rest.split('/');
    if components.any(|part| part.is_empty() || part == "." || part == "..") || text.contains('\0') {
        return refuse(format!("{} is not a path without `//`, `.`, `..` and `/` at its end", quote(text)));
    }
    if text.len() > PATH
        || rest.split('/').count() > DEPTH
        || rest.split('/').any(|part| part.len() > COMPONENT)
    {
        return refuse(format!("the path has more than {PATH} bytes or {DEPTH} components"));
    }
    Ok(())
}

/// Those of a list that is a list, with something in it.
fn elements<'a, 'i>(
    key: &str,
    everything: &str,
    example: &str,
    value: &'a Value<'i>,
    report: &mut Report<'_>,
) -> std::vec::IntoIter<&'a Value<'i>> {
    let DeValue::Array(elements) = value.get_ref() else {
        let message = format!("`{key}` is {}, not a list", kind(value.get_ref()));
        report.error(value.span(), message, format!("write it in brackets, as in `{example}`"));
        return Vec::new().into_iter();
    };
    if elements.is_empty() {
        let hint = format!("remove it, if the rule covers {everything}, or write `{example}`");
        report.error(value.span(), format!("`{key}` is empty, and the rule covers nothing"), hint);
    }
    elements.iter().collect::<Vec<_>>().into_iter()
}

/// An integer that is not negative.
fn number_of(element: &Value<'_>) -> Option<u64> {
    let number = element.get_ref().as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}
