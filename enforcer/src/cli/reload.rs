//! `enforcer reload`

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use super::client::{Client, Connection, strange};
use super::{BAD, Exit, Failure, GOOD, print, print_json};
use crate::api::{Changes, Reply, Request};
use crate::engine::format::text;

/// Have the daemon read the policy files now, and say what changed
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
}

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let reply = Client::connect(&args.connection, config)?.ask(Request::Reload)?;
    tell(reply, args.connection.json)
}

/// What a reload came to: changes, or why there are none.
pub(super) fn tell(reply: Reply, json: bool) -> Result<Exit, Failure> {
    match reply {
        Reply::Reloaded(changes) if json => print_json(&changes)?,
        Reply::Reloaded(changes) => print(&show(&changes))?,
        Reply::Refused(errors) if json => {
            print_json(&serde_json::json!({ "refused": errors }))?;
            return Ok(Exit::No);
        }
        Reply::Refused(errors) => {
            let message = format!("the policies have errors, and nothing changed:\n{}", errors.trim_end());
            return Err(Failure::new(Exit::No, message));
        }
        _ => return Err(strange("no changes")),
    }
    Ok(Exit::Yes)
}

/// Names and addresses that are shown one by one.
const SHOWN: usize = 20;

pub(super) fn show(changes: &Changes) -> String {
    let mut out = String::new();
    let rules = [
        ("+", GOOD, "added", &changes.added),
        ("~", GOOD, "changed", &changes.changed),
        ("-", BAD, "removed", &changes.removed),
    ];
    for (sign, style, word, names) in rules {
        for name in names.iter().take(SHOWN) {
            let _ = writeln!(out, "{style}{sign}{style:#} rule {} {word}", text::word(name));
        }
        if names.len() > SHOWN {
            let _ = writeln!(out, "{style}{sign}{style:#} {} more rules {word}", names.len() - SHOWN);
        }
    }
    for (what, [before, after]) in [("names", changes.names), ("networks", changes.networks)] {
        if before != after {
            let _ = writeln!(out, "{what}: {before} -> {after}");
        }
    }
    for (word, addresses, count) in [
        ("now denied", &changes.denied, changes.denied_count),
        ("freed", &changes.freed, changes.freed_count),
    ] {
        if count > 0 {
            let shown: Vec<_> = addresses.iter().take(SHOWN).map(IpAddr::to_string).collect();
            let more = count.saturating_sub(shown.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let _ = writeln!(out, "addresses {word}: {count} ({}{more})", shown.join(", "));
        }
    }
    let what = if out.is_empty() { "the rules are the same" } else { "the rules are in force" };
    let _ = write!(out, "{GOOD}ok{GOOD:#}: {what}, in {} ms", changes.milliseconds);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_well() {
        let changes = Changes {
            added: vec!["new".into()],
            removed: vec!["old".into()],
            changed: (0..22).map(|n| format!("r{n}")).collect(),
            names: [10, 12],
            networks: [1, 1],
            denied: vec!["192.0.2.1".parse().unwrap()],
            denied_count: 3,
            freed: Vec::new(),
            freed_count: 0,
            milliseconds: 7,
        };
        let shown = anstream::adapter::strip_str(&show(&changes)).to_string();
        assert!(shown.starts_with("+ rule new added\n~ rule r0 changed\n"), "{shown}");
        for line in [
            "~ 2 more rules changed",
            "- rule old removed",
            "names: 10 -> 12",
            "addresses now denied: 3 (192.0.2.1 and 2 more)",
        ] {
            assert!(shown.lines().any(|one| one == line), "{line} not in {shown}");
        }
        assert!(!shown.contains("networks") && !shown.contains("freed"), "{shown}");
        let same = anstream::adapter::strip_str(&show(&Changes::default())).to_string();
        assert_eq!(same, "ok: the rules are the same, in 0 ms");
    }
}
