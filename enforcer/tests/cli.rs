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
        also_serves: Vec::new(),
        rule: "r".into(),
        verdict: "deny".into(),
        conditions: None,
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

#[test]
fn check_warns_on_stdout_says_what_lists_hold_and_can_be_strict() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("l.txt"), "||a.example^\n##.ad\n").unwrap();
    let text = "[[rule]]\nname = 'r'\naction = 'deny'\nhosts = ['*.b.example']\n\
                lists = [{ path = 'l.txt', format = 'adblock' }]\n";
    std::fs::write(dir.path().join("p.toml"), text).unwrap();
    let (code, stdout, stderr) = run(enforcer().arg("check").arg(dir.path()));
    assert!(code == 0 && stderr.is_empty(), "{code} {stderr}");
    for want in [
        "p.toml:4:10: `*.b.example` does not match `b.example` itself",
        "l.txt (adblock): 1 name; 1 skipped: 1 hide parts of pages",
        "1 file, 1 rule, 1 warning",
    ] {
        assert!(stdout.contains(want), "{want} not in {stdout}");
    }
    assert_eq!(run(enforcer().args(["check", "--deny-warnings"]).arg(dir.path())).0, 1);
    let (_, json, _) = run(enforcer().args(["check", "--json"]).arg(dir.path()));
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&report["lists"][0]["names"], &report["lists"][0]["skipped"]["cosmetic"]),
        (&1.into(), &1.into())
    );
    assert_eq!((&report["warnings"][0]["line"], &report["warnings"][0]["column"]), (&4.into(), &10.into()));
    // A resolver of this machine, if it has one with an address.
    let resolver = enforcer::sys::host::asked().into_iter().next();
    if let Some(ip) = resolver.map(std::net::IpAddr::from) {
        std::fs::write(
            dir.path().join("p.toml"),
            format!("[[rule]]\nname = 'r'\naction = 'deny'\nnetworks = ['{ip}']\n"),
        )
        .unwrap();
        let (_, stdout, _) = run(enforcer().arg("check").arg(dir.path()));
        assert!(stdout.contains(&format!("denies {ip}, which this host asks for names")), "{stdout}");
    }
}

#[test]
fn explain_asks_files_alone_and_knows_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let (policies, settings) = (dir.path().join("policies.d"), dir.path().join("enforcer.toml"));
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(
        policies.join("p.toml"),
        "[[rule]]\nname = 'good'\naction = 'allow'\nhosts = ['good.example']\n",
    )
    .unwrap();
    let explain = |default: &str, more: &[&str], what: &str| {
        std::fs::write(&settings, format!("default = '{default}'\n")).unwrap();
        let mut command = enforcer();
        command.args(["explain", what, "--json", "--policies"]).arg(&policies);
        let (code, text, stderr) = run(command.args(more).arg("--config").arg(&settings));
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["verdict"].as_str().unwrap().to_owned()
    };
    for (default, more, other) in [
        ("allow", &[][..], "allow"),
        ("deny", &[], "deny"),
        ("deny", &["--default", "allow"], "allow"),
        ("allow", &["--default", "deny"], "deny"),
    ] {
        for (what, want) in
            [("good.example", "allow"), ("other.example", other), ("192.0.2.1", other), ("::1", "allow")]
        {
            assert_eq!(explain(default, more, what), want, "{default} {more:?} {what}");
        }
    }
    let (code, _, stderr) = run(enforcer().args(["explain", "a.example", "--default", "deny"]));
    assert!(code == 2 && stderr.contains("--policies"), "{code} {stderr}");
    std::fs::write(policies.join("p.toml"), "[[rule]\n").unwrap();
    let (code, _, stderr) = run(enforcer().args(["explain", "a.example", "--policies"]).arg(&policies));
    assert!(code == 1 && stderr.contains("p.toml:1:"), "{code} {stderr}");
}

#[test]
fn explain_and_check_know_what_becomes_of_encrypted_dns() {
    let dir = tempfile::tempdir().unwrap();
    let (policies, settings) = (dir.path().join("policies.d"), dir.path().join("enforcer.toml"));
    std::fs::create_dir(&policies).unwrap();
    let rule = "[[rule]]\nname = 'mine'\naction = 'allow'\nhosts = ['dns.google']\n";
    std::fs::write(policies.join("p.toml"), rule).unwrap();
    let json = |command: &mut Command| {
        let (code, text, stderr) = run(command.arg("--json").arg("--config").arg(&settings));
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    for (doh, more, denied) in [
        ("allow", &[][..], false),
        ("deny", &[], true),
        ("deny", &["--doh", "allow"], false),
        ("allow", &["--doh", "deny"], true),
    ] {
        // The discard prefix is nobody's own address.
        std::fs::write(&settings, format!("doh = '{doh}'\nnever_deny = ['100::53']\n")).unwrap();
        for (what, want) in [
            ("dns.quad9.net", if denied { "encrypted-dns-resolvers" } else { "" }),
            ("100::54", if denied { "encrypted-dns-port" } else { "" }),
            ("100::53", ""),
            ("dns.google", "mine"),
        ] {
            let said = json(enforcer().args(["explain", what, "--policies"]).arg(&policies).args(more));
            let rules = said["rules"].as_array().unwrap();
            let first = rules.first().map_or("", |rule| rule["rule"].as_str().unwrap());
            assert_eq!(first, want, "{doh} {more:?} {what}: {said}");
        }
        if more.is_empty() {
            let said = json(enforcer().arg("check").arg(&policies));
            assert_eq!(said["rules"], if denied { 3 } else { 1 }, "{said}");
        }
    }
    // As at the start of the daemon: names of rules are told apart.
    std::fs::write(&settings, "doh = 'deny'\n").unwrap();
    std::fs::write(policies.join("p.toml"), rule.replace("mine", "encrypted-dns-port")).unwrap();
    let (code, _, stderr) = run(enforcer().arg("check").arg(&policies).arg("--config").arg(&settings));
    assert!(code == 1 && stderr.contains("encrypted-dns-port"), "{code} {stderr}");
}

/// One event, as a JSON sink writes it.
fn event(dst: &str, verdict: &str, comm: &str) -> String {
    serde_json::json!({
        "event": "net_tcp_connect", "time": "2026-11-23T12:08:32.123456789Z", "dstIP": dst, "dstPort": 443,
        "results": ["tracker.example"], "srcIP": null, "srcPort": 0, "protocol": "tcp", "pid": 7, "tid": 7, "ppid": 1,
        "uid": 0, "gid": 0, "comm": comm, "executable": null, "cgroup": null, "layer": "lsm_connect",
        "verdict": verdict, "rule": "no-trackers",
    })
    .to_string()
}

#[test]
fn events_are_filtered_and_come_in_columns_and_formats() {
    let daemon = Daemon::start(active(true), Vec::new());
    let mut children = [
        daemon.follow(&[
            "--filter",
            "verdict == 'deny' && dst_dns =~ '*.example'",
            "--columns",
            "verdict,process,address",
        ]),
        daemon.follow(&["--format", "tracee"]),
    ];
    for (dst, verdict) in [("192.0.2.1", "allow"), ("192.0.2.2", "deny")] {
        let event = serde_json::from_str(&event(dst, verdict, "curl")).unwrap();
        daemon.events.send(Arc::new(event)).unwrap();
    }
    daemon.gap(3); // passes every filter
    let mut first = |n: usize, lines: usize| -> Vec<String> {
        BufReader::new(children[n].stdout.take().unwrap()).lines().take(lines).map(Result::unwrap).collect()
    };
    let lines = first(0, 2);
    assert_eq!(lines[0], "DENY\tcurl[7]\t192.0.2.2:443");
    let tracee: Vec<serde_json::Value> =
        first(1, 3).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(tracee[0]["args"][0]["value"], "192.0.2.1");
    assert_eq!(tracee[2]["eventName"], "enforcer_gap");
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_wrong_filter_is_shown_with_its_column() {
    for subcommand in ["events", "top", "report"] {
        let (code, _, stderr) =
            run(enforcer().args([subcommand, "--filter", "uid == 0 && verdict = 'deny'"]));
        assert_eq!(code, 2, "{stderr}");
        assert!(
            stderr.contains("column 21: \"=\" is no operator") && stderr.contains("write =="),
            "{stderr}"
        );
    }
    let (code, _, stderr) = run(enforcer().arg("top"));
    assert!(code == 2 && stderr.contains("needs a terminal"), "{stderr}");
}

#[test]
fn a_report_is_written_from_recorded_events() {
    let dir = tempfile::tempdir().unwrap();
    let (events, page) = (dir.path().join("events.json"), dir.path().join("report.html"));
    let lines = [
        event("192.0.2.1", "deny", "<script>x</script>"),
        event("192.0.2.1", "allow", "curl"),
        "torn {".into(),
    ];
    std::fs::write(&events, lines.join("\n")).unwrap();
    let report = |more: &[&str]| {
        run(enforcer().args(["report", "--since", "2026-11-23T00:00:00Z", "--from"]).arg(&events).args(more))
    };
    let (code, stdout, stderr) = report(&["--output", page.to_str().unwrap()]);
    assert!(code == 0 && stdout.contains("2 events"), "{stdout}{stderr}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(
        html.contains("no-trackers") && html.contains("&lt;script&gt;x") && !html.contains("<script"),
        "{html}"
    );
    let (_, stdout, _) = report(&["--json"]);
    let sums: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&sums["counts"]["denied"], &sums["unreadable"]), (&1.into(), &1.into()));

    // Without --from: the file of the settings' JSON sink, or what to do.
    let settings = dir.path().join("e.toml");
    std::fs::write(&settings, format!("[[sink]]\ntype = \"file\"\npath = {events:?}")).unwrap();
    let (code, stdout, _) = run(enforcer()
        .args(["report", "--json", "--since", "2026-11-23T00:00:00Z", "--config"])
        .arg(&settings));
    assert!(code == 0 && stdout.contains("tracker.example:443"), "{stdout}");
    std::fs::write(&settings, "").unwrap();
    let (code, _, stderr) = run(enforcer().args(["report", "--config"]).arg(&settings));
    assert!(code == 2 && stderr.contains("[[sink]]") && stderr.contains("--from"), "{stderr}");
}
