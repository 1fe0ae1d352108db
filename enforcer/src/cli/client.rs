//! The near end of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Exit, Failure, settings};
use crate::api::{Reply, Request};
use crate::sys::policy_dir::Distrust;

/// Longer than the daemon takes to say that it is too busy.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
pub(super) struct Connection {
    /// The daemon's control socket [default: as in the settings]
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) struct Client {
    lines: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    pub(super) fn connect(args: &Connection, config: Option<&Path>) -> Result<Self, Failure> {
        let path = match &args.socket {
            Some(path) => path.clone(),
            None => settings(config, Distrust::Ignore)?.socket,
        };
        let stream = UnixStream::connect(&path).map_err(|error| unreachable(&path, &error))?;
        Ok(Self { lines: BufReader::new(stream), path })
    }

    pub(super) fn ask(&mut self, request: Request) -> Result<Reply, Failure> {
        let patience = self.lines.get_ref().set_read_timeout(Some(PATIENCE));
        patience.map_err(|error| unreachable(&self.path, &error))?;
        self.send(request)?;
        self.reply()
    }

    pub(super) fn send(&mut self, request: Request) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(&request).map_err(io::Error::from)?;
        line.push(b'\n');
        self.lines.get_ref().write_all(&line).map_err(|error| unreachable(&self.path, &error))
    }

    pub(super) fn reply(&mut self) -> Result<Reply, Failure> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => {
                Err(Failure::new(Exit::Unreachable, "the daemon has closed the connection: it has stopped"))
            }
            Ok(_) => match serde_json::from_str(&line) {
                Ok(Reply::Error(error)) => Err(Failure::new(Exit::Failed, error)),
                Ok(reply) => Ok(reply),
                Err(error) => Err(strange(&error.to_string())),
            },
            Err(error) => Err(unreachable(&self.path, &error)),
        }
    }
}

/// The daemon answered something else than was asked, or nothing that can be read.
pub(super) fn strange(what: &str) -> Failure {
    let message = format!("the daemon's answer is not understood ({what}): is it of another version?");
    Failure::new(Exit::Failed, message)
}

fn unreachable(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::new(
            Exit::Unreachable,
            format!(
                "the daemon does not run: nobody answers on {path}\n  start it: systemctl start enforcer, or enforcer run"
            ),
        ),
        io::ErrorKind::PermissionDenied => Failure::new(
            Exit::Privilege,
            format!("{path}: {error}\n  only root may ask the daemon: use sudo"),
        ),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Failure::new(Exit::Unreachable, format!("the daemon does not answer on {path}: see its log"))
        }
        _ => Failure::new(Exit::Unreachable, format!("{path}: {error}: has the daemon stopped?")),
    }
}
