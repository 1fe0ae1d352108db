//! What people type. One file a subcommand; each returns how to exit.

mod apply;
mod check;
mod client;
mod coverage;
mod denied;
mod events;
mod exec;
mod explain;
mod release;
mod reload;
mod report;
mod run;
mod status;
mod table;
mod top;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{CommandFactory, Parser, Subcommand};
use enforcer_common::nat64;
use ipnetwork::IpNetwork;

use crate::config::{self, Config, Doh};
use crate::engine::compile::Beside;
use crate::sys::accounts::Accounts;
use crate::sys::host;
use crate::sys::policy_dir::{self, Distrust, Problem, ProblemKind};

const EXIT_CODES: &str = "\
Exit codes:
  0  yes, done
  1  no: the policy has errors, or denial is not enforced
  2  wrong usage, or wrong settings in enforcer.toml
  3  the daemon does not run or cannot be reached
  4  privileges lack
  5  anything else failed";

/// Reports every connect with the DNS names that led to it, and refuses denied ones.
#[derive(Debug, Parser)]
#[command(name = "enforcer", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    /// The settings of the daemon [default: /etc/enforcer/enforcer.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Status(status::Args),
    Coverage(coverage::Args),
    Explain(explain::Args),
    Reload(reload::Args),
    Apply(apply::Args),
    Events(Box<events::Args>),
    Report(Box<report::Args>),
    Top(Box<top::Args>),
    Denied(denied::Args),
    Exec(exec::Args),
    Release(release::Args),
}

/// For man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = cli.config.as_deref();
    let done = match cli.command {
        Command::Run(args) => {
            return run::run(&args, config).unwrap_or_else(|failure| failure.report().into());
        }
        Command::Exec(args) => {
            return exec::run(&args, config).unwrap_or_else(|failure| failure.report().into());
        }
        Command::Check(args) => check::run(&args, config),
        Command::Status(args) => status::run(&args, config),
        Command::Coverage(args) => coverage::run(&args, config),
        Command::Explain(args) => explain::run(&args, config),
        Command::Reload(args) => reload::run(&args, config),
        Command::Apply(args) => apply::run(&args, config),
        Command::Events(args) => events::run(&args, config),
        Command::Report(args) => report::run(&args, config),
        Command::Top(args) => top::run(&args, config),
        Command::Denied(args) => denied::run(&args, config),
        Command::Release(args) => release::run(&args, config),
    };
    done.unwrap_or_else(|failure| failure.report()).into()
}

/// `EXIT_CODES` says what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Yes = 0,
    No = 1,
    Usage = 2,
    Unreachable = 3,
    Privilege = 4,
    Failed = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// Why a subcommand gave up.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    fn report(self) -> Exit {
        if !self.message.is_empty() {
            let error = AnsiColor::Red.on_default().bold();
            // When even stderr is gone, the exit code says it.
            let _ = writeln!(anstream::stderr(), "{error}error:{error:#} {}", self.message);
        }
        self.exit
    }
}

/// Errors of writing to stdout. Whoever closed the pipe has read enough: that is a success.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Yes, ""),
            _ => Self::new(Exit::Failed, format!("cannot write the output: {error}")),
        }
    }
}

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const WARN: Style = AnsiColor::Yellow.on_default();

/// Colours reach terminals only, and not with `NO_COLOR`.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(value).map_err(io::Error::from)?)
}

/// The settings; the defaults if no file is named and none is at the usual place. From here on addresses mean what they say.
fn settings(file: Option<&Path>, distrust: Distrust) -> Result<Config, Failure> {
    let path = file.unwrap_or(Path::new(config::DEFAULT_PATH));
    if !path.exists() && file.is_none() {
        return Ok(Config::default());
    }
    let missing = || Failure::new(Exit::Usage, format!("{}: there is no such file", path.display()));
    let (source, problem) = policy_dir::read_file(path).map_err(unusable)?.ok_or_else(missing)?;
    if let (Some(problem), Distrust::Refuse) = (problem, distrust) {
        return Err(unusable(problem));
    }
    let text = String::from_utf8(source.bytes)
        .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", source.path)))?;
    let config = config::parse(&source.path, &text).map_err(|errors| {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Usage, errors.join("\n"))
    })?;
    nat64::set(config.nat64);
    Ok(config)
}

fn unusable(problem: Problem) -> Failure {
    let root = rustix::process::geteuid().is_root();
    let exit = if problem.kind == ProblemKind::Unreadable && !root { Exit::Privilege } else { Exit::Usage };
    Failure::new(exit, problem.as_finding("settings"))
}

/// What a policy set is compiled beside where no daemon runs it: the users and groups of this host.
fn beside() -> Beside {
    Beside { accounts: Accounts::default().numbers(), ..Beside::default() }
}

/// With `doh = "deny"`: of what the rules against encrypted DNS say nothing.
fn spared(settings: &Config) -> Result<Option<Vec<IpNetwork>>, Failure> {
    if settings.doh == Doh::Allow {
        return Ok(None);
    }
    let unread = |error| Failure::new(Exit::Failed, format!("cannot read the host's own addresses: {error}"));
    Ok(Some(host::Host::read().map_err(unread)?.never_deny(&settings.never_deny)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn the_help_tells_every_exit_code() {
        let help = command().render_long_help().to_string();
        for exit in [Exit::Yes, Exit::No, Exit::Usage, Exit::Unreachable, Exit::Privilege, Exit::Failed] {
            assert!(help.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
        }
    }

    #[test]
    fn settings_that_others_may_write_are_shown_but_not_acted_on() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o666)).unwrap();
        assert!(settings(Some(file.path()), Distrust::Ignore).is_ok());
        let failure = settings(Some(file.path()), Distrust::Refuse).unwrap_err();
        assert!(failure.exit == Exit::Usage && failure.message.contains("chmod o-w"), "{failure:?}");
    }

    #[test]
    fn wrong_settings_are_told_with_their_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "events = 1\nlayer = 2").unwrap();
        let failure = settings(Some(file.path()), Distrust::Refuse).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains(":1:10: ") && failure.message.contains(":2:9: "), "{failure:?}");
        let failure = settings(Some(Path::new("/nowhere")), Distrust::Refuse).unwrap_err();
        assert!(failure.message.contains("no such file"));
    }
}
