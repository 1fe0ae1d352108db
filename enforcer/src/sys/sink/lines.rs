//! Sinks of lines: a file, a FIFO or stdout.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Failure, Output};
use crate::engine::format::Format;
use crate::engine::format::text::Stamp;
use crate::engine::record::Event;

pub(super) struct Lines {
    /// `None`: stdout.
    path: Option<PathBuf>,
    format: Format,
    stamp: Stamp,
    host: String,
    file: Option<File>,
    /// The last write ended within a line (a full disk): the next one must not be glued to it.
    torn: bool,
}

impl Lines {
    pub(super) fn new(path: Option<PathBuf>, format: Format, host: String) -> Self {
        // On a terminal the day is known; in a file it is not.
        let short = path.is_none() && io::stdout().is_terminal();
        let stamp = if short { Stamp::Time } else { Stamp::DateTime };
        Self { path, format, stamp, host, file: None, torn: false }
    }

    /// The open one, which the caller puts back if it is sound.
    fn file(&mut self) -> io::Result<File> {
        Ok(match (self.file.take(), &self.path) {
            (Some(file), _) => file,
            (None, None) => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            (None, Some(path)) => {
                let file = open(path)?;
                // A pipe, or another file than the one with half a line, begins with a whole one.
                self.torn &= file.metadata()?.len() > 0;
                file
            }
        })
    }
}

impl Output for Lines {
    fn write(&mut self, events: &[Arc<Event>]) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        for event in events {
            bytes.extend_from_slice(self.format.render(event, &self.host, self.stamp).as_bytes());
            bytes.push(b'\n');
        }
        let result = self.file().map_err(|error| (0, error)).and_then(|mut file| {
            write_lines(&mut file, &bytes, &mut self.torn)?;
            // After an error it is opened anew: a FIFO whose reader went, a file system that was remounted.
            self.file = Some(file);
            Ok(())
        });
        result.map_err(|(written, error)| Failure::lasting(written, trouble(&error)))
    }

    fn reopen(&mut self) {
        self.file = None;
        self.torn = false;
    }
}

/// What failed, and what to do where the error does not tell.
fn trouble(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NXIO | Errno::PIPE) => format!("{error}: nobody reads this pipe; start its reader"),
        Some(Errno::NOSPC | Errno::DQUOT) => format!("{error}: make room, or rotate the file"),
        _ => error.to_string(),
    }
}

/// How many whole lines were written before the error.
fn write_lines(file: &mut impl Write, lines: &[u8], torn: &mut bool) -> Result<(), (usize, io::Error)> {
    if *torn {
        file.write_all(b"\n").map_err(|error| (0, error))?;
        *torn = false;
    }
    let mut done = 0;
    while done < lines.len() {
        let error = match file.write(&lines[done..]) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(written) => {
                done += written;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => error,
        };
        let whole = lines[..done].iter().filter(|&&byte| byte == b'\n').count();
        *torn = done > 0 && lines[done - 1] != b'\n';
        return Err((whole, error));
    }
    Ok(())
}

/// A FIFO without a reader is an error, not a wait. Writes block afterwards: this is the sink's own thread.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, at most 3 at a time, then has no space left until there is room again.
    struct Disk {
        text: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(3).min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.text.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whole_lines_are_counted_and_a_torn_one_spoils_no_other() {
        for room in 0..=9 {
            let (mut disk, mut torn) = (Disk { text: Vec::new(), room }, false);
            let first = write_lines(&mut disk, b"aaaa\nbbb\n", &mut torn);
            let whole = match room {
                0..=4 => 0,
                5..=8 => 1,
                _ => 2,
            };
            assert_eq!(first.map_or_else(|(whole, _)| whole, |()| 2), whole, "room {room}");
            disk.room = 100;
            write_lines(&mut disk, b"cccc\n", &mut torn).unwrap();
            let text = String::from_utf8(disk.text).unwrap();
            let kept = text.lines().filter(|line| ["aaaa", "bbb"].contains(line)).count();
            // A line that lacks nothing but its end is counted as lost and yet legible: that is no harm.
            assert!(kept == whole || kept == whole + 1, "room {room}: {text:?}");
            assert_eq!(text.lines().last(), Some("cccc"), "room {room}: {text:?}");
        }
    }
}
