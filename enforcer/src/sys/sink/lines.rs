//! Sinks of lines: a file, a FIFO or stdout; JSON or text.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::text::{self, Stamp};
use super::{Failure, Output};
use crate::config::Target;
use crate::engine::record::Event;

pub(super) struct Lines {
    target: Target,
    render: fn(&Event, &mut Vec<u8>),
    file: Option<File>,
    /// The last write ended within a line (a full disk): the next one must not be glued to it.
    torn: bool,
}

impl Lines {
    pub(super) fn json(target: Target) -> Self {
        Self { target, render: json, file: None, torn: false }
    }

    pub(super) fn text(target: Target) -> Self {
        // On a terminal the day is known; in a file it is not.
        let short = target == Target::Stdout && io::stdout().is_terminal();
        Self { target, render: if short { short_text } else { dated_text }, file: None, torn: false }
    }

    fn file(&mut self) -> io::Result<&mut File> {
        let file = match (self.file.take(), &self.target) {
            (Some(file), _) => file,
            (None, Target::Stdout) => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            (None, Target::File(path)) => open(path)?,
        };
        Ok(self.file.insert(file))
    }
}

impl Output for Lines {
    fn write(&mut self, events: &[Arc<Event>]) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        for event in events {
            (self.render)(event, &mut bytes);
            bytes.push(b'\n');
        }
        let mut torn = self.torn;
        let result = match self.file() {
            Ok(file) => write_lines(file, &bytes, &mut torn),
            Err(error) => Err((0, error)),
        };
        self.torn = torn;
        result.map_err(|(written, error)| {
            self.file = None; // a FIFO whose reader went, a file system that was remounted: open it anew
            Failure { written, error: error.to_string(), retry: false }
        })
    }

    fn reopen(&mut self) {
        self.file = None;
        self.torn = false;
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

fn json(event: &Event, line: &mut Vec<u8>) {
    // Strings and numbers into memory cannot fail.
    let _ = serde_json::to_writer(line, event);
}

fn short_text(event: &Event, line: &mut Vec<u8>) {
    line.extend(text::line(event, Stamp::Time).bytes());
}

fn dated_text(event: &Event, line: &mut Vec<u8>) {
    line.extend(text::line(event, Stamp::DateTime).bytes());
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
