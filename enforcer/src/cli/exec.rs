//! `enforcer exec`

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use super::{BAD, Exit, Failure, GOOD, WARN, beside, settings};
use crate::config::DefaultVerdict;
use crate::daemon::{self, DaemonError, Destination, Outcome};
use crate::engine::compile::Compiled;
use crate::engine::format::text;
use crate::engine::policy::Source;
use crate::sys::policy_dir::Distrust;
use crate::sys::rules;

/// Run a command and its children under a policy of their own
///
/// They run in a control group of their own, below the one of this shell; the host's daemon and its rules are not touched,
/// and hold for them as well. Of the settings nothing matters but `nat64_prefixes`. What is refused is refused with EPERM
/// by cgroup hooks. When the command ends, what it left running ends, too; a summary of what it reached and what was refused
/// goes to stderr. It exits as the command does.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The rules of a directory's policy files
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    /// Deny a host pattern, as in `hosts` of a rule, or a network
    #[arg(long, value_name = "GLOB")]
    deny: Vec<String>,
    /// Allow a host pattern or a network, whatever denies it
    #[arg(long, value_name = "GLOB")]
    allow: Vec<String>,
    /// The verdict on what no rule names. With `deny` the command reaches what is allowed and nothing else, but for loopback
    /// and DNS to the host's resolvers
    #[arg(long, value_enum, value_name = "VERDICT", default_value = "allow", hide_possible_values = true)]
    default: DefaultVerdict,
    /// Exit with 1 when something was refused and the command succeeded all the same
    #[arg(long)]
    fail_on_deny: bool,
    /// Do not print the summary
    #[arg(long, short)]
    quiet: bool,
    /// The command and its arguments
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<ExitCode, Failure> {
    // Nothing of them but what addresses mean.
    settings(config, Distrust::Refuse)?;
    let compiled = rules(args)?;
    let (program, rest) =
        args.command.split_first().ok_or_else(|| Failure::new(Exit::Usage, "no command was given"))?;
    let outcome = daemon::exec(compiled, args.default, Command::new(program).args(rest))
        .map_err(|error| failed(program, &error))?;
    if !args.quiet {
        // When stderr is gone, the exit code says the rest.
        let _ = write!(anstream::stderr(), "{}", summary(&outcome));
    }
    let refused = args.fail_on_deny && outcome.denied > 0;
    Ok(if refused && outcome.status.success() { Exit::No.into() } else { outcome.code().into() })
}

fn failed(program: &OsString, error: &DaemonError) -> Failure {
    match error {
        DaemonError::Io { what: "cannot run the command", source } => {
            Failure::new(Exit::Usage, format!("cannot run {}: {source}", program.display()))
        }
        other => Failure::new(Exit::Failed, other.to_string()),
    }
}

/// Nobody is told of less than what is written: an error anywhere, and the command does not run.
fn rules(args: &Args) -> Result<Compiled, Failure> {
    let given = [given("--deny", "deny", &args.deny), given("--allow", "allow", &args.allow)];
    let given: Vec<Source> = given.into_iter().flatten().collect();
    let rules = rules::read(args.policies.as_deref(), &given, Distrust::Refuse, &beside()).rules;
    Ok(rules.map_err(|errors| Failure::new(Exit::No, rules::lines(&errors)))?.compiled)
}

/// What stands on the command line, as a policy file of that name.
fn given(option: &str, action: &str, patterns: &[String]) -> Option<Source> {
    if patterns.is_empty() {
        return None;
    }
    let is_network = |text: &&String| text.parse::<ipnetwork::IpNetwork>().is_ok();
    let (networks, hosts): (Vec<_>, Vec<_>) = patterns.iter().partition(is_network);
    let list = |texts: &[&String]| {
        texts.iter().map(|text| toml::Value::from(text.as_str()).to_string()).collect::<Vec<_>>().join(", ")
    };
    let mut text = format!("[[rule]]\nname = \"{option}\"\naction = \"{action}\"\n");
    for (key, texts) in [("hosts", hosts), ("networks", networks)] {
        if !texts.is_empty() {
            let _ = writeln!(text, "{key} = [{}]", list(&texts));
        }
    }
    Some(Source { path: option.to_owned(), bytes: text.into_bytes() })
}

fn summary(outcome: &Outcome) -> String {
    let mut out = String::new();
    let (connects, denied) = (outcome.connects, outcome.denied);
    let style = if denied > 0 { BAD } else { GOOD };
    let _ = writeln!(out, "{style}enforcer:{style:#} {connects} connects, {denied} refused");
    // What was refused is what is looked for.
    let (refused, reached): (Vec<_>, Vec<_>) = outcome.destinations.iter().partition(|(to, _)| to.refused);
    for (to, count) in refused.into_iter().chain(reached) {
        let _ = writeln!(out, "{}", line(to, *count));
    }
    if outcome.others > 0 {
        let _ = writeln!(out, "  and {} connects to other destinations", outcome.others);
    }
    let told = outcome.destinations.values().sum::<u64>() + outcome.others;
    if told < connects {
        let _ = writeln!(out, "  {} connects were counted and not reported", connects - told);
    }
    out
}

fn line(to: &Destination, count: u64) -> String {
    let (style, word) = match (to.refused, to.audited) {
        (true, _) => (BAD, "refused"),
        (false, true) => (WARN, "audited"),
        (false, false) => (GOOD, "reached"),
    };
    let address = std::net::SocketAddr::new(to.address, to.port);
    let name = to.name.as_deref().map_or_else(|| "(no name)".to_owned(), text::word);
    let by = to.rule.as_deref().map_or_else(String::new, |rule| format!(" by {}", text::word(rule)));
    let times = if count == 1 { String::new() } else { format!(", {count} times") };
    format!("  {style}{word}{style:#} {address} {name}{by}{times}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::policy;

    #[test]
    fn the_command_line_is_a_policy() {
        let patterns = ["*.a.example", "192.0.2.0/24", "x\"y"].map(str::to_owned);
        let source = given("--deny", "deny", &patterns[..2]).unwrap();
        let set = policy::parse(&[source]).unwrap().set;
        assert_eq!((set.rules[0].hosts.len(), set.rules[0].networks.len()), (1, 1));
        let errors = policy::parse(&[given("--deny", "deny", &patterns).unwrap()]).unwrap_err();
        assert!(errors[0].to_string().starts_with("error: --deny:4:"), "{}", errors[0]);
        assert!(given("--allow", "allow", &[]).is_none());
    }
}
