//! `enforcer apply`: a policy file is put into force, and comes to stay only when somebody says so.
//!
//! The daemon enforces the file from where it was staged and holds the timer. So a connection that the new rules cut,
//! a terminal that hangs up and a killed process all end in what was before.

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::client::{Client, Connection, strange};
use super::{Exit, Failure, WARN, print, reload};
use crate::api::{Reply, Request};
use crate::sys::clock;
use crate::sys::policy_dir::{self, MAX_FILE_BYTES};

/// For the daemon to take back what nobody kept.
const PATIENCE: u64 = 10_000_000_000;
/// Without `--confirm` the file is tried only to find out whether it is right.
const AT_ONCE: u64 = 60;

/// Put a policy file into the policy directory, on trial if you like
///
/// With --confirm the rules are in force at once, and the file comes to stay when you press Enter (or somebody types
/// `enforcer apply --keep`) within that time. Else what was before comes back: also when the terminal hangs up, when
/// this program is killed, and when the daemon restarts. Nobody locks himself out of a remote host.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file; it keeps its name, and replaces a file of that name
    #[arg(required_unless_present_any = ["keep", "undo"])]
    file: Option<PathBuf>,
    /// Go back unless you confirm within this time, as in 60s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    confirm: Option<Duration>,
    /// Keep the file that is on trial
    #[arg(long, conflicts_with_all = ["file", "confirm", "undo"])]
    keep: bool,
    /// Go back now
    #[arg(long, conflicts_with_all = ["file", "confirm"])]
    undo: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let mut client = Client::connect(&args.connection, config)?;
    let Reply::Status(status) = client.ask(Request::Status)? else { return Err(strange("no status")) };
    let directory = PathBuf::from(status.policy.directory);
    let mut apply = Apply { client, directory, json: args.connection.json };
    match &args.file {
        Some(file) => apply.file(file, args.confirm),
        None if args.keep => apply.keep(),
        None => apply.undo(),
    }
}

struct Apply {
    client: Client,
    directory: PathBuf,
    json: bool,
}

impl Apply {
    fn file(&mut self, file: &Path, confirm: Option<Duration>) -> Result<Exit, Failure> {
        let name = self.name_of(file)?;
        let staged = format!(".enforcer-apply-{name}");
        self.no_trial_runs()?;
        self.stage(file, &staged)?;
        let seconds = confirm.map_or(AT_ONCE, |time| time.as_secs().max(1));
        let request = Request::Try { name, staged: staged.clone(), seconds };
        let tried = match self.client.ask(request) {
            Ok(Reply::Reloaded(changes)) => Reply::Reloaded(changes),
            other => {
                let _ = fs::remove_file(self.directory.join(&staged));
                return reload::tell(other?, self.json);
            }
        };
        let Some(time) = confirm else {
            self.place()?;
            return reload::tell(tried, self.json);
        };
        reload::tell(tried, self.json)?;
        self.say(&format!(
            "{WARN}on trial{WARN:#}: press Enter within {} to keep this, or `enforcer apply --keep` from anywhere",
            humantime::format_duration(Duration::from_secs(time.as_secs().max(1)))
        ))?;
        if self.confirmed(time)? { self.keep() } else { self.wait_for_the_end(&staged) }
    }

    fn keep(&mut self) -> Result<Exit, Failure> {
        self.place()?;
        self.say("kept: the file stands in the policy directory")?;
        Ok(Exit::Yes)
    }

    fn undo(&mut self) -> Result<Exit, Failure> {
        let Some(trial) = self.trial()? else { return Err(no_trial()) };
        let reply = self.client.ask(Request::Undo)?;
        let _ = fs::remove_file(self.directory.join(trial.staged));
        reload::tell(reply, self.json)
    }

    /// First the file, then the word: whatever happens between the two, the file is there, and it was wanted.
    fn place(&mut self) -> Result<(), Failure> {
        let Some(trial) = self.trial()? else { return Err(no_trial()) };
        let path = self.directory.join(&trial.name);
        let moved = fs::rename(self.directory.join(&trial.staged), &path);
        moved
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(|error| cannot_write(&path, &error))?;
        match self.client.ask(Request::Keep)? {
            Reply::Reloaded(_) => Ok(()),
            Reply::Refused(errors) => Err(Failure::new(Exit::No, errors)),
            _ => Err(strange("neither kept nor refused")),
        }
    }

    fn trial(&mut self) -> Result<Option<crate::api::Trial>, Failure> {
        match self.client.ask(Request::Trial)? {
            Reply::Trial(trial) => Ok(trial),
            _ => Err(strange("no trial")),
        }
    }

    fn no_trial_runs(&mut self) -> Result<(), Failure> {
        let Some(trial) = self.trial()? else { return Ok(()) };
        let message = format!(
            "{} is on trial for {} s more: `enforcer apply --keep` or `--undo` it first, or wait",
            trial.name, trial.seconds_left
        );
        Err(Failure::new(Exit::No, message))
    }

    fn name_of(&self, file: &Path) -> Result<String, Failure> {
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .filter(|name| policy_dir::is_policy_name(name.as_ref()));
        let name = name.ok_or_else(|| {
            let message = format!("{}: a policy file has a name that ends with .toml", file.display());
            Failure::new(Exit::Usage, message)
        })?;
        let parent = file.canonicalize().ok().and_then(|file| file.parent().map(Path::to_owned));
        if parent.is_some() && parent == self.directory.canonicalize().ok() {
            let message = format!("{} is in the policy directory: it is in force already", file.display());
            return Err(Failure::new(Exit::Usage, message));
        }
        Ok(name.to_owned())
    }

    /// A copy beside the policies, for the daemon to read: whole, or not there.
    fn stage(&self, file: &Path, staged: &str) -> Result<(), Failure> {
        let cannot_read =
            |error: io::Error| Failure::new(Exit::Usage, format!("{}: {error}", file.display()));
        let size = fs::metadata(file).map_err(cannot_read)?.len();
        if size > MAX_FILE_BYTES {
            let message = format!("{}: the file is larger than {} KiB", file.display(), MAX_FILE_BYTES >> 10);
            return Err(Failure::new(Exit::No, message));
        }
        let bytes = fs::read(file).map_err(cannot_read)?;
        let path = self.directory.join(staged);
        let write = || {
            // Of an earlier run, perhaps with other rights.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(&bytes)?;
            file.set_permissions(PermissionsExt::from_mode(0o644))?;
            file.sync_all()
        };
        write().map_err(|error| cannot_write(&path, &error))
    }

    /// Whether Enter was pressed in time. The end of the input is no Enter.
    fn confirmed(&self, time: Duration) -> Result<bool, Failure> {
        let end = clock::boot_ns() + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let stdin = io::stdin();
        loop {
            let left = Duration::from_nanos(end.saturating_sub(clock::boot_ns()));
            let Ok(left) = left.try_into() else { return Ok(false) };
            match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(Failure::new(Exit::Failed, format!("cannot wait for Enter: {error}")));
                }
            }
        }
        let mut line = String::new();
        let read = stdin.lock().read_line(&mut line);
        if read.is_ok_and(|_| line.ends_with('\n')) {
            return Ok(true);
        }
        self.say("nobody can press Enter here: `enforcer apply --keep` keeps it")?;
        Ok(false)
    }

    /// Until the daemon has gone back, or somebody else kept it.
    fn wait_for_the_end(&mut self, staged: &str) -> Result<Exit, Failure> {
        let mut patience = clock::boot_ns() + PATIENCE;
        while let Some(trial) = self.trial()? {
            let now = clock::boot_ns();
            patience = patience.max(now + trial.seconds_left * 1_000_000_000 + PATIENCE);
            if trial.staged != staged || now > patience {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        // Whoever kept it has moved it to its place.
        match fs::remove_file(self.directory.join(staged)) {
            Ok(()) => Err(Failure::new(Exit::No, "nobody confirmed: what was before is in force again")),
            Err(_) => {
                self.say("kept from elsewhere")?;
                Ok(Exit::Yes)
            }
        }
    }

    /// For people: JSON has the changes alone.
    fn say(&self, text: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { print(text) }
    }
}

fn no_trial() -> Failure {
    Failure::new(Exit::No, "no policy file is on trial: its time was up, or it was kept or undone already")
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::PermissionDenied { Exit::Privilege } else { Exit::Failed };
    Failure::new(exit, format!("cannot write {}: {error}", path.display()))
}
