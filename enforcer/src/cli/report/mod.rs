//! `enforcer report`

mod page;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::events::parse_filter;
use super::{Exit, Failure, print, print_json, settings};
use crate::config::Output;
use crate::engine::filter::Filter;
use crate::engine::format::Format;
use crate::engine::record::Event;
use crate::engine::summary::Summary;
use crate::sys::clock;
use crate::sys::policy_dir::Distrust;

/// Longer lines are no events.
const MAX_LINE: u64 = 1 << 20;

/// Write a report of recorded events as one HTML page: who talked to whom, what was refused and why
///
/// Needs a file of events: a sink with type = "file" and format = "json" in enforcer.toml. The page holds no scripts and
/// asks for nothing from the network.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How far back: a duration such as 30m, 1h or 7days, or a time such as 2026-01-02T03:04:05Z
    #[arg(long, value_name = "WHEN", default_value = "1h")]
    since: String,
    /// Read these files of JSON events, "-" is stdin [default: the file that a json sink of the settings writes,
    /// with what logrotate made of it]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    from: Vec<PathBuf>,
    /// Count only events that fulfil this expression (see `enforcer events --help`)
    #[arg(long, value_name = "EXPRESSION", value_parser = parse_filter)]
    filter: Option<Filter>,
    /// Where to write the page [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the sums as JSON instead
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let until = i64::try_from(clock::real_ns()).unwrap_or(i64::MAX);
    let since = since(&args.since, until)?;
    if args.output.is_none() && !args.json && io::stdout().is_terminal() {
        let message = "a page of HTML is nothing for a terminal: write --output report.html";
        return Err(Failure::new(Exit::Usage, message));
    }
    let files = if args.from.is_empty() { configured(config, since)? } else { args.from.clone() };
    let mut reading = Reading { summary: Summary::new(since, until), unreadable: 0 };
    for file in &files {
        reading.file(file, args.filter.as_ref())?;
    }
    let Reading { summary, unreadable } = reading;
    if args.json {
        print_json(&json_summary(&summary, unreadable))?;
        return Ok(Exit::Yes);
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let html = page::render(&summary, &page::Origin { host, unreadable, files: names(&files) });
    match &args.output {
        None => print(&html)?,
        Some(path) => {
            write(path, &html).map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
            })?;
            print(&format!("{}: {} events of {}", path.display(), summary.events, names(&files).join(", ")))?;
        }
    }
    Ok(Exit::Yes)
}

fn since(text: &str, now: i64) -> Result<i64, Failure> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(i64::try_from(time.as_nanosecond()).unwrap_or(i64::MIN));
    }
    let duration = humantime::parse_duration(text).map_err(|error| {
        let hint = "write a duration such as 30m, 1h or 7days, or a time such as 2026-01-02T03:04:05Z";
        Failure::new(Exit::Usage, format!("--since {text:?}: {error}\n  hint: {hint}"))
    })?;
    Ok(now.saturating_sub(nanoseconds(duration)))
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// The files of the first JSON sink: rotated ones (as far as they were written since), oldest first, then its own.
fn configured(config: Option<&Path>, since: i64) -> Result<Vec<PathBuf>, Failure> {
    let sinks = settings(config, Distrust::Ignore)?.sinks;
    let file = sinks.into_iter().find_map(|sink| match (sink.format, sink.output) {
        (Format::Json, Output::File(path)) => Some(path),
        _ => None,
    });
    let path = file.ok_or_else(|| {
        let hint = "add one to enforcer.toml:\n    [[sink]]\n    type = \"file\"\n    path = \"/var/log/enforcer/events.json\"\n  \
                    or name files of JSON events: --from FILE";
        Failure::new(Exit::Usage, format!("no sink of the settings writes JSON events to a file\n  {hint}"))
    })?;
    let mut files: Vec<_> =
        rotated(&path).into_iter().filter(|(mtime, _)| *mtime >= since / 1_000_000_000).collect();
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).chain([path]).collect())
}

/// `events.json.1`, `events.json-20261123`: with when they were last written.
fn rotated(path: &Path) -> Vec<(i64, PathBuf)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries
        .filter(|entry| {
            let other = entry.file_name();
            let suffix = other.to_str().and_then(|other| other.strip_prefix(name));
            suffix.is_some_and(|suffix| {
                suffix.starts_with(['.', '-'])
                    && suffix[1..].bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
            })
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.mtime(), entry.path())))
        .collect()
}

fn names(files: &[PathBuf]) -> Vec<String> {
    files
        .iter()
        .map(|file| if file == Path::new("-") { "stdin".into() } else { file.display().to_string() })
        .collect()
}

struct Reading {
    summary: Summary,
    /// Lines that are no events.
    unreadable: u64,
}

impl Reading {
    fn file(&mut self, path: &Path, filter: Option<&Filter>) -> Result<(), Failure> {
        let fail = |error: io::Error| {
            let exit = match error.kind() {
                io::ErrorKind::PermissionDenied => Exit::Privilege,
                io::ErrorKind::NotFound => Exit::Usage,
                _ => Exit::Failed,
            };
            Failure::new(exit, format!("cannot read {}: {error}", path.display()))
        };
        if path == Path::new("-") {
            return self.lines(&mut io::stdin().lock(), filter).map_err(fail);
        }
        let mut file = BufReader::new(File::open(path).map_err(fail)?);
        let packed = [&[0x1f, 0x8b][..], b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"];
        if packed.iter().any(|magic| file.fill_buf().is_ok_and(|start| start.starts_with(magic))) {
            let hint = format!("unpack it: zcat {} | enforcer report --from -", path.display());
            return Err(Failure::new(Exit::Usage, format!("{} is compressed\n  {hint}", path.display())));
        }
        self.lines(&mut file, filter).map_err(fail)
    }

    fn lines(&mut self, reader: &mut impl BufRead, filter: Option<&Filter>) -> io::Result<()> {
        let mut line = Vec::new();
        while reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? > 0 {
            if line.trim_ascii().is_empty() {
                line.clear();
                continue;
            }
            match serde_json::from_slice::<Event>(&line) {
                Ok(event) if filter.is_none_or(|filter| filter.matches(&event)) => {
                    self.summary.add(&event);
                }
                Ok(_) => {}
                Err(_) => self.unreadable += 1,
            }
            line.clear();
        }
        Ok(())
    }
}

/// Whole or not at all, and for the owner's eyes: it says what a host talks to.
fn write(path: &Path, html: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let new = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let done = file.write_all(html.as_bytes()).and_then(|()| fs::rename(&new, path));
    if done.is_err() {
        let _ = fs::remove_file(&new);
    }
    done
}

fn json_summary(summary: &Summary, unreadable: u64) -> serde_json::Value {
    let pairs = |map: &std::collections::BTreeMap<(String, String), _>, keys: [&str; 2]| -> Vec<_> {
        let entry = |((one, two), value): (&(String, String), &crate::engine::summary::Counts)| json!({ keys[0]: one, keys[1]: two, "counts": value });
        map.iter().map(entry).collect()
    };
    let talkers = summary.talkers.iter().map(|((program, user), talker)| {
        json!({ "program": program, "user": user, "counts": talker.counts, "units": talker.units,
                "destinations": talker.destinations, "elsewhere": talker.elsewhere })
    });
    json!({
        "since": summary.since, "until": summary.until, "events": summary.events, "unreadable": unreadable,
        "counts": summary.counts, "lostEvents": summary.lost_events, "lostAnswers": summary.lost_answers,
        "beyond": summary.beyond, "rules": summary.rules, "talkers": talkers.collect::<Vec<_>>(),
        "shared": summary.shared().iter().map(|(ip, address)| json!({ "address": ip, "names": address.asked,
            "alsoServes": address.also_serves, "rules": address.rules, "counts": address.counts })).collect::<Vec<_>>(),
        "noDns": pairs(&summary.no_dns, ["program", "address"]), "noDnsConnects": summary.no_dns_connects,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::samples;
    use crate::engine::format::text::Stamp;

    #[test]
    fn durations_and_times_are_understood() {
        assert_eq!(since("1h", 3_600_000_000_007).unwrap(), 7);
        assert_eq!(since("1970-01-01T00:00:01Z", 0).unwrap(), 1_000_000_000);
        assert!(since("yesterday", 0).unwrap_err().message.contains("7days"));
    }

    #[test]
    fn lines_that_are_no_events_are_counted_and_the_others_are_read() {
        let line = Format::Json.render(&Event::TcpConnect(samples::connect()), "", Stamp::None);
        let text = format!(
            "{line}\nrubbish\n\n{{\"event\":\"net_tcp_connect\"}}\n{line}\n{}\n{line}",
            "x".repeat(3 << 20)
        );
        let mut reading = Reading { summary: Summary::new(i64::MIN, i64::MAX), unreadable: 0 };
        reading.lines(&mut text.as_bytes(), None).unwrap();
        assert_eq!(reading.summary.counts.denied, 3);
        assert!(reading.unreadable >= 3);
        let filter = "dst_port == 80".parse().unwrap();
        let mut reading = Reading { summary: Summary::new(i64::MIN, i64::MAX), unreadable: 0 };
        reading.lines(&mut text.as_bytes(), Some(&filter)).unwrap();
        assert_eq!(reading.summary.events, 0);
    }

    #[test]
    fn rotated_files_are_read_first_and_packed_ones_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.json");
        for name in [
            "events.json",
            "events.json.1",
            "events.json-20261123",
            "events.json.2.gz",
            "events.jsonx",
            "other",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let mut names: Vec<_> =
            rotated(&path).into_iter().map(|(_, path)| path.file_name().unwrap().to_owned()).collect();
        names.sort();
        assert_eq!(names, ["events.json-20261123", "events.json.1"]);
        let packed = dir.path().join("events.json.2.gz");
        fs::write(&packed, [0x1f, 0x8b, 8, 0]).unwrap();
        let mut reading = Reading { summary: Summary::new(0, 0), unreadable: 0 };
        assert!(reading.file(&packed, None).unwrap_err().message.contains("zcat"));
    }

    #[test]
    fn the_page_is_written_whole_and_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.html");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(&dir.path().join("no/r.html"), "x").is_err());
    }
}
