//! `enforcer explain`

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client::{Client, Connection, strange};
use super::{BAD, Exit, Failure, GOOD, WARN, beside, print, print_json, settings, spared};
use crate::api::{Reply, Request};
use crate::config::{DefaultVerdict, Doh};
use crate::engine::compile::{Beside, Compiled};
use crate::engine::explain::{self, Address, Asked, Explanation, Known, Says};
use crate::engine::format::text::{self, Stamp};
use crate::engine::record::Event;
use crate::sys::policy_dir::Distrust;
use crate::sys::rules;
use crate::sys::sockets;

/// Say why a name, an address, a process' connections or an event's destination are denied, or are not
///
/// Asks the daemon, which also knows where names led. With --policies the files of a directory are asked alone, and no
/// daemon is needed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A host name, an address, the number of a process (its open connections), or event:SEQUENCE
    what: String,
    /// Ask the policy files of this directory, not the daemon
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    /// With --policies: the verdict on what no rule names [default: as in the settings]
    #[arg(long, value_enum, requires = "policies", value_name = "VERDICT", hide_possible_values = true)]
    default: Option<DefaultVerdict>,
    /// With --policies: whether encrypted DNS to public resolvers is denied beside them [default: as in the settings]
    #[arg(long, value_enum, requires = "policies", value_name = "VERDICT", hide_possible_values = true)]
    doh: Option<Doh>,
    #[command(flatten)]
    connection: Connection,
}

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let pid = args.what.parse::<u32>().ok();
    let whats = match pid {
        Some(pid) => sockets::peers(pid)
            .map_err(|error| no_process(pid, &error))?
            .iter()
            .map(ToString::to_string)
            .collect(),
        None => vec![args.what.clone()],
    };
    let mut explain = Explain::new(args, config)?;
    let (mut all, mut shown) = (Vec::new(), Vec::new());
    for what in &whats {
        let (explanation, event) = explain.ask(what)?;
        let event = event.map(|event| text::line(&event, Stamp::DateTime) + "\n").unwrap_or_default();
        shown.push(event + &show(&explanation));
        all.push(explanation);
    }
    if args.connection.json {
        match (pid, all.pop()) {
            (None, Some(one)) => print_json(&one)?,
            (_, last) => print_json(&all.into_iter().chain(last).collect::<Vec<_>>())?,
        }
        return Ok(Exit::Yes);
    }
    if let Some(pid) = pid
        && all.is_empty()
    {
        print(&format!("the process {pid} has no connection to another host open"))?;
    }
    if !shown.is_empty() {
        print(shown.join("\n").trim_end())?;
    }
    Ok(Exit::Yes)
}

fn no_process(pid: u32, error: &std::io::Error) -> Failure {
    let exit = match error.kind() {
        std::io::ErrorKind::PermissionDenied => Exit::Privilege,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("the connections of process {pid} cannot be read: {error}"))
}

/// Who is asked.
enum Explain {
    Daemon(Client),
    /// And what becomes of a destination that they do not name.
    Files(Box<Compiled>, DefaultVerdict),
}

impl Explain {
    fn new(args: &Args, config: Option<&Path>) -> Result<Self, Failure> {
        let Some(directory) = &args.policies else {
            return Ok(Self::Daemon(Client::connect(&args.connection, config)?));
        };
        let mut settings = settings(config, Distrust::Ignore)?;
        settings.default = args.default.unwrap_or(settings.default);
        settings.doh = args.doh.unwrap_or(settings.doh);
        let beside = Beside { spared: spared(&settings)?, ..beside() };
        let rules = rules::read(Some(directory), &[], Distrust::Ignore, &beside).rules;
        let rules = rules.map_err(|errors| Failure::new(Exit::No, rules::lines(&errors)))?;
        Ok(Self::Files(Box::new(rules.compiled), settings.default))
    }

    fn ask(&mut self, what: &str) -> Result<(Explanation, Option<Box<Event>>), Failure> {
        match self {
            Self::Daemon(client) => match client.ask(Request::Explain { what: what.to_owned() })? {
                Reply::Explained(explanation, event) => Ok((*explanation, event)),
                _ => Err(strange("no explanation")),
            },
            Self::Files(compiled, default) => {
                let asked = Asked::new(what).map_err(|error| Failure::new(Exit::Usage, error))?;
                let mut explanation = explain::explain(&asked, &Known { compiled, running: None });
                if *default == DefaultVerdict::Deny {
                    explanation.deny_by_default();
                }
                Ok((explanation, None))
            }
        }
    }
}

fn show(explanation: &Explanation) -> String {
    let mut out = String::new();
    let (style, words) = match explanation.verdict.as_str() {
        "deny" => (BAD, "is denied"),
        "audit" => (WARN, "is let through, and reported as audited"),
        _ => (GOOD, "is allowed"),
    };
    let by = match &explanation.rule {
        Some(rule) => format!("by the rule {}", text::word(rule)),
        None if explanation.verdict == "deny" => "by `default`: no rule names it".to_owned(),
        None => "no rule names it".to_owned(),
    };
    let _ = writeln!(out, "{}: {style}{words}{style:#}, {by}", text::word(&explanation.what));
    explanation.rules.iter().for_each(|says| rule(&mut out, says));
    for address in &explanation.addresses {
        addresses(&mut out, explanation, address);
    }
    if explanation.dns_known && explanation.addresses.is_empty() {
        out.push_str("  no answer of DNS that was seen leads there, or it has run out\n");
    }
    if !explanation.dns_known {
        out.push_str("  (from the files alone: what DNS said is the daemon's to know)\n");
    }
    out
}

fn rule(out: &mut String, says: &Says) {
    let mark = if says.decides { "=>" } else { "  " };
    let exception = match &says.conditions {
        _ if says.action != says.rule_action => " (an exception in its list)".to_owned(),
        Some(conditions) => format!(", for {}", text::escape(conditions)),
        None => String::new(),
    };
    let _ = writeln!(
        out,
        "{mark} {}: the rule {} {} {}{exception}",
        text::word(&says.at),
        text::word(&says.rule),
        match says.action.as_str() {
            "allow" => "allows",
            "deny" => "denies",
            _ => "audits",
        },
        text::word(&says.about)
    );
}

fn addresses(out: &mut String, explanation: &Explanation, address: &Address) {
    let _ = write!(out, "   {}: {}", address.address, address.verdict);
    if let Some(rule) = &address.rule {
        let _ = write!(out, " by {}", text::word(rule));
    }
    if let Some(seconds) = address.expires_in_seconds {
        let _ = write!(out, " for {} more", humantime::format_duration(Duration::from_secs(seconds)));
    }
    if address.never_denied {
        out.push_str("; never denied for a name");
    }
    out.push('\n');
    let others: Vec<_> = address.names.iter().filter(|leads| leads.name != explanation.what).collect();
    for leads in others {
        let kind = if leads.asked { "asked for" } else { "an alias" };
        let _ = writeln!(
            out,
            "      also {} ({kind}, {} ago)",
            text::word(&leads.name),
            humantime::format_duration(Duration::from_secs(leads.seen_seconds_ago))
        );
    }
    if let Some(seconds) = address.shared_for_seconds {
        let left = humantime::format_duration(Duration::from_secs(seconds));
        let _ = writeln!(out, "      shared: rules for unshared addresses let it pass for {left} more");
    }
    if !address.also_serves.is_empty() {
        let names: Vec<_> = address.also_serves.iter().map(|name| text::word(name)).collect();
        let _ = writeln!(
            out,
            "      no rule refuses {}, which {} here as well",
            names.join(" "),
            if names.len() == 1 { "leads" } else { "lead" }
        );
    }
}
