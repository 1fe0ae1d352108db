//! Sinks against what happens to them: slow, full, gone and back.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

use super::*;
use crate::config::{Facility, Http, Output as To, SyslogRfc, SyslogServer};
use crate::engine::format::Format;
use crate::engine::format::samples::{self, connect};
use crate::engine::record::{FlowBegin, Process, VerdictName};
use crate::sys::process;

const QUEUE: usize = 8192;

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
    SinkConfig::new(To::File(path.to_owned()), Format::Json)
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
    let sinks =
        Sinks::start(&[json(&first), SinkConfig::new(To::File(second.clone()), Format::Text)]).unwrap();
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

/// What a stream lacks, it says itself: lines + gaps == sent.
#[test]
fn where_a_sink_lost_events_its_stream_has_a_gap_with_their_number() {
    let dir = tempfile::tempdir().unwrap();
    let (path, sent) = (fifo(&dir), 3 * QUEUE as u32);
    let reader = open_reader(&path);
    let sinks = Sinks::start(&[json(&path)]).unwrap();
    (0..sent).for_each(|n| sinks.send(event(n)));
    assert!(sinks.status()[0].lost > 0, "{:?}", sinks.status());
    // The pipe is read from here on, to the event that is sent last.
    let reader = thread::spawn(move || {
        let (mut seen, mut lost) = (0, 0);
        for line in BufReader::new(reader).lines() {
            match serde_json::from_str(&line.unwrap()).unwrap() {
                Event::Gap(gap) => lost += gap.lost_events,
                Event::TcpConnect(connect) if connect.process.pid == sent => break,
                _ => seen += 1,
            }
        }
        (seen, lost)
    });
    wait(|| sinks.status()[0].waiting == 0);
    sinks.send(event(sent));
    let lost = sinks.status()[0].lost;
    assert_eq!(reader.join().unwrap(), (u64::from(sent) - lost, lost));
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
    let to = SyslogServer::Unix(path.to_owned());
    SinkConfig::new(To::Syslog { to, facility: Facility(19), rfc: SyslogRfc::Rfc3164 }, Format::Text)
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
    let short = daemon.read();
    assert!(short.len() <= 8192 && short.ends_with("rule no-trackers"), "{short}");
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
    let sinks = Sinks::start(&[SinkConfig::new(To::Journald, Format::Text)]).unwrap();
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
    has("ENFORCER_UNIT", "run-1.scope");
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

/// Answers HTTP as told, one answer a request, the last one for ever; keeps the bodies. Alive until dropped.
struct Collector {
    url: String,
    bodies: Arc<Mutex<Vec<String>>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    fn start(answers: &'static [&'static str]) -> Self {
        Self::on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), answers)
    }

    fn on(listener: std::net::TcpListener, answers: &'static [&'static str]) -> Self {
        let url = format!("http://{}/events", listener.local_addr().unwrap());
        let collector = Self { url, bodies: Arc::default(), heads: Arc::default() };
        let (bodies, heads) = (Arc::clone(&collector.bodies), Arc::clone(&collector.heads));
        thread::spawn(move || {
            for n in 0.. {
                let Ok((stream, _)) = listener.accept() else { return };
                if Arc::strong_count(&bodies) == 1 {
                    return;
                }
                let (head, body) = request(&mut BufReader::new(&stream));
                let answer = answers[n.min(answers.len() - 1)];
                // Counted before it is answered: who was answered can look.
                if answer.contains(" 200 ") {
                    bodies.lock().unwrap().push(body);
                }
                heads.lock().unwrap().push(head);
                let _ = (&stream).write_all(answer.as_bytes());
            }
        });
        collector
    }

    fn sink(&self, batch: usize) -> SinkConfig {
        let http = Http {
            url: self.url.clone(),
            headers: vec![("Authorization".into(), "Bearer t".into())],
            ca: None,
            batch,
            delay: Duration::from_millis(20),
            timeout: Duration::from_secs(2),
        };
        SinkConfig::new(To::Webhook { http, lines: false }, Format::Json)
    }

    fn events(&self) -> Vec<Event> {
        let bodies = self.bodies.lock().unwrap();
        bodies.iter().flat_map(|body| serde_json::from_str::<Vec<Event>>(body).unwrap()).collect()
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy";
const UNWANTED: &str = "HTTP/1.1 400 Bad\r\nContent-Length: 7\r\nConnection: close\r\n\r\nno\x1b[2J!";
const MOVED: &str =
    "HTTP/1.1 302 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn request(reader: &mut impl BufRead) -> (String, String) {
    let (mut head, mut line, mut length) = (String::new(), String::new(), 0);
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&lower);
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn a_webhook_gets_every_event_in_batches() {
    let collector = Collector::start(&[OK]);
    let sinks = Sinks::start(&[collector.sink(100)]).unwrap();
    for n in 0..1000 {
        sinks.send(event(n));
    }
    assert_eq!(sinks.flush(PATIENCE), 0);
    let pids: Vec<_> = collector.events().iter().map(|event| event.process().unwrap().pid).collect();
    assert!(pids.into_iter().eq(0..1000), "all, once, in order");
    assert!((10..1000).contains(&collector.bodies.lock().unwrap().len()), "in batches");
    let heads = collector.heads.lock().unwrap();
    let head = &heads[0];
    for wanted in
        ["post /events", "content-type: application/json", "authorization: bearer t", "user-agent: enforcer/"]
    {
        assert!(head.contains(wanted), "{wanted} in {head}");
    }
}

#[test]
fn a_webhook_that_is_down_busy_or_back_loses_nothing_within_its_queue() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener); // down
    let dir = tempfile::tempdir().unwrap();
    let down = Collector { url: format!("http://{address}/"), bodies: Arc::default(), heads: Arc::default() };
    let sinks = Sinks::start(&[down.sink(100), json(&dir.path().join("good"))]).unwrap();
    for n in 0..300 {
        sinks.send(event(n));
    }
    wait(|| sinks.status()[0].error.is_some() && sinks.status()[1].written == 300);
    assert!(sinks.status()[0].error.as_ref().unwrap().contains("refused"), "{:?}", sinks.status()[0]);
    let back = Collector::on(std::net::TcpListener::bind(address).unwrap(), &[BUSY, BUSY, OK]);
    assert_eq!(sinks.flush(PATIENCE), 0);
    let pids: Vec<_> = back.events().iter().map(|event| event.process().unwrap().pid).collect();
    assert!(pids.into_iter().eq(0..300), "all, once, in order");
    let status = &sinks.status()[0];
    assert_eq!((status.written, status.lost), (300, 0));
    assert!(status.error.as_ref().unwrap().starts_with("recovered from: HTTP 503: busy"), "{status:?}");
}

#[test]
fn what_a_webhook_does_not_want_is_lost_and_counted() {
    for (answer, why) in [(UNWANTED, "HTTP 400: no[2J!"), (MOVED, "HTTP 302: the receiver has moved")] {
        let answers: &'static [&'static str] = Box::leak(Box::new([answer]));
        let collector = Collector::start(answers);
        let sinks = Sinks::start(&[collector.sink(10)]).unwrap();
        (0..5).for_each(|n| sinks.send(event(n)));
        assert_eq!(sinks.flush(PATIENCE), 0);
        let status = &sinks.status()[0];
        assert_eq!((status.written, status.lost), (0, 5));
        assert!(status.error.as_ref().unwrap().contains(why), "{status:?}");
    }
}

#[test]
fn a_webhook_that_never_answers_delays_nobody_and_every_loss_is_counted() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap(); // never accepts
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let dead = Collector { url, bodies: Arc::default(), heads: Arc::default() };
    let dir = tempfile::tempdir().unwrap();
    let small = SinkConfig { queue: 100, ..dead.sink(10) };
    let sinks = Sinks::start(&[small, json(&dir.path().join("good"))]).unwrap();
    send(&sinks, 1, 1000);
    let status = &sinks.status()[0];
    assert!(status.lost >= 1000 - 100 - 10 && status.written == 0, "{status:?}");
    assert_eq!(status.written + status.lost + status.waiting, 1000);
    assert_eq!(lines(&dir.path().join("good")), 1000);
}

#[test]
fn otlp_gets_log_records_and_its_rejections_are_losses() {
    const PARTIAL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 64\r\nConnection: close\r\n\r\n{\"partialSuccess\":{\"rejectedLogRecords\":\"2\",\"errorMessage\":\"x\"}}";
    let collector = Collector::start(&[PARTIAL]);
    let To::Webhook { http, .. } = collector.sink(10).output else { panic!("a webhook") };
    let sinks = Sinks::start(&[SinkConfig::new(To::Otlp(http), Format::Text)]).unwrap();
    for event in samples::all().into_iter().take(5) {
        sinks.send(Arc::new(event));
    }
    assert_eq!(sinks.flush(PATIENCE), 0);
    let bodies = collector.bodies.lock().unwrap().clone();
    let count = |body: &String| {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        body["resourceLogs"][0]["scopeLogs"][0]["logRecords"].as_array().unwrap().len()
    };
    assert_eq!(bodies.iter().map(count).sum::<usize>(), 5);
    let status = &sinks.status()[0];
    assert_eq!(status.lost, 2 * bodies.len() as u64);
    assert_eq!(status.written + status.lost, 5);
}

#[test]
fn a_filter_keeps_out_what_is_not_wanted_and_counts_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let filter = "pid >= 90 && verdict == \"deny\"".parse().unwrap();
    let sinks = Sinks::start(&[SinkConfig { filter: Some(filter), ..json(&path) }]).unwrap();
    (0..100).for_each(|n| sinks.send(event(n)));
    sinks.send(Arc::new(Event::Gap(samples::gap())));
    assert_eq!(sinks.flush(PATIENCE), 0);
    let status = &sinks.status()[0];
    assert_eq!((status.written, status.lost, status.filtered), (11, 0, 90));
    assert_eq!(lines(&path), 11);
}

#[test]
fn a_sink_on_the_network_is_not_told_of_its_own_connects() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(&[OK]);
    let sinks = Sinks::start(&[collector.sink(10), json(&dir.path().join("all"))]).unwrap();
    let mut own = connect();
    own.process.pid = std::process::id();
    own.process.process_start = process::started(Path::new("/proc/self")).map(|ticks| ticks * process::TICK);
    sinks.send(Arc::new(Event::TcpConnect(own)));
    sinks.send(event(1));
    assert_eq!(sinks.flush(PATIENCE), 0);
    assert_eq!((sinks.status()[0].written, sinks.status()[1].written), (1, 2));
    assert_eq!(collector.events().len(), 1);
}

#[test]
fn a_sink_on_the_network_is_not_told_that_its_collector_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(&[OK]);
    let sinks = Sinks::start(&[collector.sink(10), json(&dir.path().join("all"))]).unwrap();
    let flow = |port, direction, pid| {
        let process = Some(Process { pid, ..Process::default() });
        Arc::new(Event::FlowBegin(FlowBegin { src_port: port, direction, process, ..samples::flow() }))
    };
    sinks.send(flow(1, Direction::Out, std::process::id()));
    sinks.send(flow(1, Direction::In, 7));
    sinks.send(flow(2, Direction::Out, 7)); // somebody else's
    sinks.send(flow(2, Direction::In, 7));
    (0..OWN_FLOWS as u16).for_each(|n| sinks.send(flow(100 + n, Direction::Out, std::process::id())));
    sinks.send(flow(1, Direction::In, 7)); // so long after, it is another
    assert_eq!(sinks.flush(PATIENCE), 0);
    assert_eq!((sinks.status()[0].written, sinks.status()[1].written), (3, 5 + OWN_FLOWS as u64));
}

fn syslog_over(to: SyslogServer, format: Format) -> SinkConfig {
    SinkConfig::new(To::Syslog { to, facility: Facility(3), rfc: SyslogRfc::Rfc5424 }, format)
}

/// What the kernel says of a datagram after it was sent decides about the one before.
#[test]
fn syslog_over_udp_to_nobody_counts_what_it_is_told() {
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let to = SyslogServer::Udp(address.to_string());
    // So few that a socket has room for all that comes at once, when it is there again.
    let config = SinkConfig { queue: 20, ..syslog_over(to, Format::Json) };
    let sinks = Sinks::start(&[config]).unwrap();
    sinks.send(event(0));
    wait(|| sinks.status()[0].written == 1);
    drop(server);
    // More than the queue and the batch in hand can hold.
    (1..1000).for_each(|n| sinks.send(event(n)));
    wait(|| sinks.status()[0].lost > 0);
    let server = std::net::UdpSocket::bind(address).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let reader = thread::spawn(move || {
        let mut bytes = [0; 65536];
        let message = || server.recv(&mut bytes).ok().map(|length| bytes[..length].to_vec());
        let event = |message: &Vec<u8>| !String::from_utf8_lossy(message).contains(" gap - ");
        std::iter::from_fn(message).filter(event).count() as u64
    });
    assert_eq!(sinks.flush(PATIENCE), 0);
    let received = reader.join().unwrap();
    let status = &sinks.status()[0];
    assert_eq!(status.written + status.lost, 1000);
    assert_eq!(received, status.written - 1, "the first one went to the server before: {status:?}");
}

#[test]
fn syslog_over_udp_is_one_datagram_an_event() {
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = SyslogServer::Udp(server.local_addr().unwrap().to_string());
    let sinks = Sinks::start(&[syslog_over(to, Format::Ecs)]).unwrap();
    for n in 0..100 {
        sinks.send(event(n));
        let mut bytes = [0; 65536];
        let length = server.recv(&mut bytes).unwrap();
        let message = std::str::from_utf8(&bytes[..length]).unwrap();
        assert!(message.starts_with("<28>1 2026-11-23T12:08:32.123456Z "), "{message}");
        let (_, body) = message.split_once(" - ").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["process"]["pid"], n);
    }
}

/// The messages of one connection to its end, by their octet counts.
fn messages(stream: std::net::TcpStream, at_most: usize) -> Vec<String> {
    let mut reader = BufReader::new(stream);
    let mut messages = Vec::new();
    while messages.len() < at_most {
        let mut count = Vec::new();
        if reader.read_until(b' ', &mut count).unwrap_or(0) == 0 {
            break;
        }
        let count: usize = std::str::from_utf8(&count).unwrap().trim().parse().unwrap();
        let mut message = vec![0; count];
        reader.read_exact(&mut message).unwrap();
        messages.push(String::from_utf8(message).unwrap());
    }
    messages
}

#[test]
fn a_restart_of_syslog_over_tcp_loses_nothing_that_it_had_not_received() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sinks = Sinks::start(&[syslog_over(SyslogServer::Tcp(address.to_string()), Format::Json)]).unwrap();
    let mut seen = Vec::new();
    let mut listener = Some(listener);
    for round in 0..5 {
        let sent = round * 100;
        (sent..sent + 100).for_each(|n| sinks.send(event(n)));
        let server = listener.take().unwrap_or_else(|| std::net::TcpListener::bind(address).unwrap());
        let (stream, _) = server.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        seen.extend(messages(stream, 100));
        wait(|| sinks.status()[0].written == u64::from(sent) + 100);
        // Here it restarts: the connection and the listener are dropped.
    }
    let pid = |message: &String| {
        let (_, body) = message.split_once(" - ").unwrap();
        serde_json::from_str::<Event>(body).unwrap().process().unwrap().pid
    };
    let mut pids: Vec<_> = seen.iter().map(pid).collect();
    pids.dedup();
    assert!(pids.into_iter().eq(0..500));
    assert_eq!(sinks.status()[0].lost, 0);
    assert!(sinks.status()[0].error.is_some(), "it was seen to be gone");
}
