//! The program as people run it, against a control socket whose daemon is this test.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use enforcer::api::{Denied, Enforcement, Reply, Request, Status};
use enforcer::engine::record::{Event, Gap};
use enforcer::sys::control::{self, Query};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, mpsc};

/// A daemon that serves only the socket.
struct Daemon {
    runtime: Runtime,
    events: broadcast::Sender<Arc<Event>>,
    dir: TempDir,
}

impl Daemon {
    fn start(status: Status, denied: Vec<Denied>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (events, _) = broadcast::channel(1024);
        let (requests, mut queries) = mpsc::channel::<Query>(1);
        let listener = {
            let _entered = runtime.enter();
            control::bind(&dir.path().join("s")).unwrap()
        };
        runtime.spawn(control::serve(listener, requests, events.clone(), std::future::pending()));
        runtime.spawn(async move {
            while let Some((request, answer)) = queries.recv().await {
                let reply = match request {
                    Request::Status => Reply::Status(Box::new(status.clone())),
                    _ => Reply::Denied(denied.clone()),
                };
                let _ = answer.send(reply);
            }
        });
        Self { runtime, events, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn follow(&self, json: &[&str]) -> Child {
        let before = self.events.receiver_count();
        let child = command("events", &self.socket())
            .args(json)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        wait(|| (self.events.receiver_count() > before).then_some(()));
        child.unwrap()
    }

    fn gap(&self, lost_events: u64) {
        let time = "2026-11-23T12:08:32.123456789Z".into();
        let _ = self.events.send(Arc::new(Event::Gap(Gap { time, lost_events, lost_answers: 0 })));
    }
}

fn wait<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..20_000 {
        if let Some(value) = condition() {
            return value;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("waited too long");
}

fn enforcer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enforcer"));
    command.env_remove("CLICOLOR_FORCE").stdin(Stdio::null());
    command
}

fn command(name: &str, socket: &Path) -> Command {
    let mut command = enforcer();
    command.arg(name).arg("--socket").arg(socket);
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn active(active: bool) -> Status {
    let enforcement = Enforcement { active, layer: "lsm".into(), ..Enforcement::default() };
    Status { enforcement, ..Status::default() }
}

#[test]
fn status_says_by_text_and_exit_code_whether_it_enforces() {
    let (code, text, _) = run(&mut command("status", &Daemon::start(active(true), vec![]).socket()));
    assert!(code == 0 && text.starts_with("enforcing: LSM, proven"), "{code} {text}");
    let daemon = Daemon::start(active(false), vec![]);
    let (code, text, _) = run(&mut command("status", &daemon.socket()));
    assert!(code == 1 && text.starts_with("NOT ENFORCING: "), "{code} {text}");
    let (code, text, _) = run(command("status", &daemon.socket()).arg("--json"));
    assert_eq!((code, serde_json::from_str::<Status>(&text).unwrap()), (1, active(false)));
}

#[test]
fn denied_lists_as_a_table_or_json() {
    let entry = Denied {
        address: "192.0.2.1".into(),
        ip: "192.0.2.1".parse().ok(),
        names: vec!["a.example".into()],
        rule: "r".into(),
        verdict: "deny".into(),
        expires_in_seconds: Some(60),
    };
    let daemon = Daemon::start(active(true), vec![entry.clone()]);
    let (code, text, _) = run(&mut command("denied", &daemon.socket()));
    assert!(code == 0 && text.contains("192.0.2.1  a.example  r     deny     1m"), "{code} {text}");
    let (_, text, _) = run(command("denied", &daemon.socket()).arg("--json"));
    assert_eq!(serde_json::from_str::<Vec<Denied>>(&text).unwrap(), [entry]);
}

#[test]
fn events_are_followed_until_the_daemon_goes() {
    let daemon = Daemon::start(active(true), vec![]);
    let (mut text, mut json) = (daemon.follow(&[]), daemon.follow(&["--json"]));
    daemon.gap(7);
    let first = |child: &mut Child| {
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    };
    assert!(first(&mut text).starts_with("12:08:32.123  GAP    7 connect reports"));
    assert!(matches!(serde_json::from_str(&first(&mut json)), Ok(Event::Gap(gap)) if gap.lost_events == 7));
    daemon.runtime.shutdown_background();
    for mut child in [text, json] {
        let mut stderr = String::new();
        child.stderr.as_mut().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(stderr.contains("it has stopped"), "{stderr}");
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}

#[test]
fn a_closed_pipe_ends_events_in_peace() {
    let daemon = Daemon::start(active(true), vec![]);
    let mut child = daemon.follow(&[]);
    drop(child.stdout.take());
    let code = wait(|| {
        daemon.gap(1); // again and again: a child of another test may still hold the pipe for a moment
        child.try_wait().unwrap()
    });
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((code.code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_daemon_that_does_not_run_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let stale = dir.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for socket in [stale, dir.path().join("none")] {
        for name in ["status", "events", "denied"] {
            let (code, _, text) = run(&mut command(name, &socket));
            assert!(
                code == 3 && text.contains("the daemon does not run") && text.contains("systemctl start"),
                "{text}"
            );
        }
    }
}

#[test]
fn wrong_usage_and_wrong_settings_are_2() {
    assert_eq!(run(enforcer().arg("fly")).0, 2);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("enforcer.toml");
    std::fs::write(&file, "evnts = \"all\"").unwrap();
    for name in ["run", "check", "status"] {
        let (code, _, text) = run(enforcer().arg(name).arg("--config").arg(&file));
        assert!(code == 2 && text.contains("did you mean \"events\"?"), "{name} {code} {text}");
    }
}

#[test]
fn check_finds_what_is_wrong_with_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text, _) = run(enforcer().arg("check").arg(dir.path()));
    assert!(code == 0 && text.starts_with("ok: ") && text.contains("0 files, 0 rules"), "{code} {text}");
    let none = dir.path().join("none");
    let (code, text, errors) = run(enforcer().arg("check").arg(&none));
    assert!(
        code == 1 && text.starts_with("not usable: ") && errors.contains("mkdir -p"),
        "{code} {text} {errors}"
    );
    let (code, text, _) = run(enforcer().arg("check").arg("--json").arg(&none));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["ok"], &report["errors"][0]["kind"]), (1, &false.into(), &"unusable".into()));
}
