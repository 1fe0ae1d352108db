//! Sinks against what happens to them: slow, full, gone and back.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use ::syslog::Facility;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

use super::text::tests::connect;
use super::*;
use crate::engine::record::VerdictName;

const PATIENCE: Duration = Duration::from_secs(20);

fn event(n: u32) -> Arc<Event> {
    let mut connect = connect();
    connect.process.pid = n;
    Arc::new(Event::TcpConnect(connect))
}

/// In steps that a sound sink's queue takes whole, so that only the unsound one can lose events.
fn send(sinks: &Sinks, sound: usize, events: u32) {
    let start = sinks.status()[sound].written;
    for n in 0..events {
        sinks.send(event(n));
        if n.is_multiple_of(QUEUE as u32 / 2) {
            wait(|| sinks.status()[sound].written == start + u64::from(n) + 1);
        }
    }
    wait(|| sinks.status()[sound].written == start + u64::from(events));
}

fn wait(condition: impl Fn() -> bool) {
    let end = clock::boot_ns() + PATIENCE.as_nanos() as u64;
    while !condition() {
        assert!(clock::boot_ns() < end, "waited too long");
        thread::sleep(Duration::from_millis(1));
    }
}

fn json(path: &Path) -> SinkConfig {
    SinkConfig::Json(Target::File(path.to_owned()))
}

fn lines(path: &Path) -> usize {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<Event>(line).is_ok()));
    text.lines().count()
}

fn fifo(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    path
}

fn open_reader(path: &Path) -> File {
    // Opening a FIFO to read and write never waits for the other side.
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn every_event_is_one_line_of_each_file() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("json"), dir.path().join("text"));
    let sinks = Sinks::start(&[json(&first), SinkConfig::Text(Target::File(second.clone()))]).unwrap();
    for n in 0..1000 {
        sinks.send(event(n));
    }
    assert_eq!(sinks.flush(PATIENCE), 0);
    let text = fs::read_to_string(second).unwrap();
    assert_eq!((lines(&first), text.lines().count()), (1000, 1000));
    assert!(text.lines().enumerate().all(|(n, line)| line.contains(&format!("curl[{n}]"))));
    assert!(sinks.status().iter().all(|sink| (sink.written, sink.lost, &sink.error) == (1000, 0, &None)));
}

#[test]
fn a_full_disk_loses_only_its_own_events_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let sinks = Sinks::start(&[json(&dir.path().join("good")), json(Path::new("/dev/full"))]).unwrap();
    send(&sinks, 0, 10_000);
    assert_eq!(sinks.flush(PATIENCE), 0);
    let full = &sinks.status()[1];
    assert_eq!((full.written, full.lost), (0, 10_000));
    assert!(full.error.as_ref().unwrap().contains("No space left"), "{full:?}");
    assert_eq!(lines(&dir.path().join("good")), 10_000);
}

#[test]
fn a_reader_that_does_not_read_delays_nobody_and_every_loss_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (path, sent) = (fifo(&dir), 3 * QUEUE as u32);
    let reader = open_reader(&path);
    let sinks = Sinks::start(&[json(&path), json(&dir.path().join("good"))]).unwrap();
    send(&sinks, 1, sent);
    let waiting = sinks.flush(Duration::from_millis(20));
    let slow = &sinks.status()[0];
    assert!(waiting > 0 && slow.lost > 0, "{slow:?}");
    assert!(slow.error.as_ref().unwrap().contains("too slow"), "{slow:?}");
    assert_eq!(slow.written + slow.lost + waiting, u64::from(sent));

    let expected = (u64::from(sent) - slow.lost) as usize;
    let seen = BufReader::new(reader).lines().take(expected).map(|line| {
        serde_json::from_str::<Event>(&line.unwrap()).unwrap();
    });
    assert_eq!(seen.count(), expected); // seen + lost == sent
    assert_eq!(sinks.flush(PATIENCE), 0);
    assert_eq!(lines(&dir.path().join("good")), sent as usize);
}

#[test]
fn a_pipe_that_nobody_reads_loses_events_until_somebody_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(&dir);
    let sinks = Sinks::start(&[json(&path)]).unwrap();
    sinks.send(event(1));
    assert_eq!(sinks.flush(PATIENCE), 0);
    assert_eq!((sinks.status()[0].written, sinks.status()[0].lost), (0, 1));

    let reader = open_reader(&path);
    sinks.send(event(2));
    assert_eq!(sinks.flush(PATIENCE), 0);
    assert_eq!((sinks.status()[0].written, sinks.status()[0].lost), (1, 1));
    assert!(sinks.status()[0].error.as_ref().unwrap().starts_with("recovered from: "));

    drop(reader); // now the open pipe breaks
    sinks.send(event(3));
    assert_eq!(sinks.flush(PATIENCE), 0);
    assert!(sinks.status()[0].error.as_ref().unwrap().contains("Broken pipe"));
    let _reader = open_reader(&path);
    sinks.send(event(4));
    assert_eq!(sinks.flush(PATIENCE), 0);
    assert_eq!((sinks.status()[0].written, sinks.status()[0].lost), (2, 2));
}

#[test]
fn files_are_reopened_after_logrotate() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
    let sinks = Sinks::start(&[json(&path)]).unwrap();
    sinks.send(event(1));
    assert_eq!(sinks.flush(PATIENCE), 0);
    fs::rename(&path, &old).unwrap();
    sinks.reopen();
    sinks.send(event(2));
    assert_eq!(sinks.flush(PATIENCE), 0);
    assert_eq!((lines(&old), lines(&path)), (1, 1));
}

/// Stands for a syslog daemon (or the journal) until dropped.
struct Daemon(UnixDatagram);

impl Daemon {
    fn start(path: &Path) -> Self {
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn read(&self) -> String {
        let mut bytes = [0; 65536];
        let length = self.0.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }
}

fn syslog_at(path: &Path) -> SinkConfig {
    SinkConfig::Syslog { facility: Facility::LOG_LOCAL3, socket: path.to_owned() }
}

#[test]
fn syslog_gets_each_event_with_its_severity() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let daemon = Daemon::start(&path);
    let sinks = Sinks::start(&[syslog_at(&path)]).unwrap();
    for (verdict, priority) in [(VerdictName::Deny, 4), (VerdictName::Audit, 5), (VerdictName::Allow, 6)] {
        let mut connect = connect();
        connect.verdict = verdict;
        sinks.send(Arc::new(Event::UdpConnect(connect)));
        let message = daemon.read();
        assert!(message.starts_with(&format!("<{}>", (19 << 3) + priority)), "{message}");
        assert!(message.contains(&format!("enforcer[{}]: ", std::process::id())), "{message}");
        assert!(message.ends_with("curl[1234] uid 1000  rule no-trackers"), "{message}");
    }
    let mut long = connect();
    long.results = vec!["x".repeat(250); 1000];
    sinks.send(Arc::new(Event::TcpConnect(long)));
    assert!(daemon.read().ends_with(" ..."));
}

#[test]
fn a_restart_of_syslog_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let sinks = Sinks::start(&[syslog_at(&path)]).unwrap();
    sinks.send(event(0)); // before it starts at all
    for n in 0..3 {
        let daemon = Daemon::start(&path);
        assert!(daemon.read().contains(&format!("curl[{n}]")));
        drop(daemon);
        sinks.send(event(n + 1));
        wait(|| {
            let status = &sinks.status()[0];
            let failing = status.error.as_ref().is_some_and(|error| !error.starts_with("recovered"));
            failing && status.written == u64::from(n) + 1
        });
    }
    let status = &sinks.status()[0];
    assert_eq!((status.written, status.lost), (3, 0), "{status:?}");
}

#[test]
fn a_long_absence_of_syslog_is_counted_to_the_last_event() {
    let dir = tempfile::tempdir().unwrap();
    let (path, sent) = (dir.path().join("log"), 2 * QUEUE as u32);
    let sinks = Sinks::start(&[syslog_at(&path), json(&dir.path().join("good"))]).unwrap();
    send(&sinks, 1, sent);
    let lost = sinks.status()[0].lost;
    assert!(lost > 0 && sinks.status()[0].written == 0);
    let daemon = Daemon::start(&path);
    let seen = u64::from(sent) - lost;
    (0..seen).for_each(|_| drop(daemon.read()));
    assert_eq!(sinks.flush(PATIENCE), 0);
    let status = &sinks.status()[0];
    assert_eq!((status.written, status.lost), (seen, lost));
    assert_eq!(seen + lost, u64::from(sent));
}

/// The journal's path is fixed, so this thread (and the sink's, its child) gets a /run of its own.
fn own_run() -> bool {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    // SAFETY: only the file system view of this thread changes; it shares no file descriptors' fate.
    if unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.is_err() {
        eprintln!("skipped: only root can have a /run of its own");
        return false;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
    fs::create_dir_all("/run/systemd/journal").unwrap();
    true
}

/// The next record; empty datagrams only ask whether anybody listens.
fn next_record(daemon: &Daemon) -> String {
    loop {
        let record = daemon.read();
        if !record.is_empty() {
            return record;
        }
    }
}

#[test]
fn the_journal_gets_one_record_an_event_and_may_restart() {
    thread::spawn(|| own_run().then(journal_test)).join().unwrap(); // a thread that no other test runs on
}

fn journal_test() {
    let socket = Path::new("/run/systemd/journal/socket");
    let sinks = Sinks::start(&[SinkConfig::Journald]).unwrap();
    sinks.send(event(7));
    wait(|| sinks.status()[0].error.is_some());
    let daemon = Daemon::start(socket);
    let record = next_record(&daemon);
    let has = |name: &str, value: &str| {
        // A field is its name, a newline, the value's length in 8 bytes, the value.
        let length = String::from_utf8((value.len() as u64).to_le_bytes().to_vec()).unwrap();
        assert!(record.contains(&format!("{name}\n{length}{value}\n")), "{name}={value} in {record:?}");
    };
    has("ENFORCER_EVENT", "net_tcp_connect");
    has("ENFORCER_VERDICT", "deny");
    has("ENFORCER_DST_IP", "192.0.2.10");
    has("ENFORCER_DST_PORT", "443");
    has("ENFORCER_RESULTS", "tracker.example cdn.example");
    has("ENFORCER_COMM", "curl");
    has("ENFORCER_PID", "7");
    has("ENFORCER_UID", "1000");
    has("ENFORCER_EXECUTABLE", "/usr/bin/curl");
    has("ENFORCER_RULE", "no-trackers");
    has("SYSLOG_IDENTIFIER", "enforcer");
    has("PRIORITY", "4");
    assert!(record.contains("DENY   tcp  192.0.2.10:443"), "{record:?}");
    assert!(!record.contains("ENFORCER_SRC_IP"), "{record:?}");

    drop(daemon);
    sinks.send(event(8));
    wait(|| sinks.status()[0].error.as_ref().is_some_and(|error| !error.starts_with("recovered")));
    let daemon = Daemon::start(socket);
    assert!(next_record(&daemon).contains("curl[8]"));
    assert_eq!(sinks.flush(PATIENCE), 0);
    assert_eq!((sinks.status()[0].written, sinks.status()[0].lost), (2, 0));
}
