//! A real HTTP server, with and without TLS, that is down, slow, failing or not who it should be.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::Event;
use enforcer_tests::daemon::connect;
use enforcer_tests::harness::{Test, test};
use enforcer_tests::wait;
use serde::Deserialize;

use super::{
    FILTER, POLL, Program, SOON, fails_with, fire, idle, in_gaps, numbers, run, sound, status_says, until,
};
use crate::cases::{BAD_V4, setup};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test("sink_webhook_goes_to_a_private_ca_in_batches", private),
        test("sink_webhook_is_not_told_of_its_own_connects", own),
        test("sink_webhook_says_what_is_wrong_and_what_to_do", wrong),
        test("sink_webhook_outlives_a_receiver_that_fails", failing),
    ]
}

/// As receiver.py writes it.
#[derive(Debug, Deserialize)]
pub(super) struct Request {
    status: u16,
    slow: bool,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

pub(super) struct Receiver {
    directory: PathBuf,
    port: u16,
    certificate: Option<PathBuf>,
    running: Option<Program>,
}

impl Receiver {
    pub(super) fn start(port: u16, certificate: Option<PathBuf>) -> Result<Self> {
        let directory = PathBuf::from(format!("/run/receiver/{port}"));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("receiver.py"), include_str!("receiver.py"))?;
        let mut receiver = Self { directory, port, certificate, running: None };
        receiver.answers("200 0")?;
        receiver.restart()?;
        Ok(receiver)
    }

    fn restart(&mut self) -> Result<()> {
        let mut command = Command::new("python3");
        command.arg(self.directory.join("receiver.py")).arg(&self.directory).arg(self.port.to_string());
        self.running = Some(Program::start(command.args(&self.certificate))?);
        let port = self.port;
        wait::until_every(POLL, "the receiver to listen", SOON, || {
            Ok(Some(TcpStream::connect(("127.0.0.1", port))?))
        })?;
        Ok(())
    }

    /// A status, and the seconds before it.
    fn answers(&self, mode: &str) -> Result<()> {
        fs::write(self.directory.join("mode.new"), mode)?;
        Ok(fs::rename(self.directory.join("mode.new"), self.directory.join("mode"))?)
    }

    /// From now on, instead of an empty object.
    pub(super) fn says(&self, answer: &str) -> Result<()> {
        Ok(fs::write(self.directory.join("answer"), answer)?)
    }

    pub(super) fn requests(&self) -> Result<Vec<Request>> {
        let text = fs::read_to_string(self.directory.join("requests")).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// What it took.
    fn events(&self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for request in self.requests()?.iter().filter(|request| request.status == 200 && !request.slow) {
            events.extend(serde_json::from_str::<Vec<Event>>(&request.body)?);
        }
        Ok(events)
    }

    fn until_received(&self, count: u64) -> Result<()> {
        wait::until_every(POLL, &format!("the receiver to have {count} events"), SOON, || {
            let seen = numbers(&self.events()?).len();
            ensure!(seen as u64 == count, "it has {seen}");
            Ok(Some(()))
        })
    }
}

/// Authorities and what they issue, by openssl.
struct Certificates(PathBuf);

impl Certificates {
    fn new() -> Result<Self> {
        let directory = PathBuf::from("/run/certificates");
        fs::create_dir_all(&directory)?;
        let certificates = Self(directory);
        for name in ["ours", "other"] {
            let (key, pem) = (certificates.path(name, "key"), certificates.path(name, "pem"));
            let subject = format!("/CN={name} authority");
            let options =
                ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
            run("openssl", &[&options[..], &["-subj", &subject, "-keyout", &key, "-out", &pem]].concat())?;
        }
        Ok(certificates)
    }

    fn path(&self, name: &str, kind: &str) -> String {
        format!("{}/{name}.{kind}", self.0.display())
    }

    /// Key and certificate in one file, as Python's ssl takes it.
    fn issue(&self, by: &str, file: &str, name: &str, days: &str) -> Result<PathBuf> {
        let (key, request, pem) = (self.path(file, "key"), self.path(file, "csr"), self.path(file, "crt"));
        let (extensions, both) = (self.path(file, "ext"), self.path(file, "both"));
        fs::write(&extensions, format!("subjectAltName = {name}\nbasicConstraints = CA:FALSE\n"))?;
        let options =
            ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=x"];
        run("openssl", &[&options[..], &["-keyout", &key, "-out", &request]].concat())?;
        let (authority, signer) = (self.path(by, "pem"), self.path(by, "key"));
        let options =
            ["x509", "-req", "-in", &request, "-CA", &authority, "-CAkey", &signer, "-CAcreateserial"];
        run("openssl", &[&options[..], &["-days", days, "-extfile", &extensions, "-out", &pem]].concat())?;
        fs::write(&both, fs::read_to_string(&key)? + &fs::read_to_string(&pem)?)?;
        Ok(both.into())
    }
}

const HERE: &str = "IP:127.0.0.1,DNS:localhost";

fn private() -> Result<()> {
    let certificates = Certificates::new()?;
    let receiver = Receiver::start(8443, Some(certificates.issue("ours", "good", HERE, "2")?))?;
    let setup = setup(&format!(
        "[[sink]]\ntype = \"webhook\"\nurl = \"https://127.0.0.1:8443/events?token=secret\"\nca = \"{}\"\n\
         headers = {{ Authorization = \"Bearer secret\" }}\nbatch = 20\ndelay = \"100ms\"\n{FILTER}\n",
        certificates.path("ours", "pem")
    ))?;
    let _daemon = setup.start()?;
    fire(0..90)?;
    receiver.until_received(90)?;
    let requests = receiver.requests()?;
    ensure!((5..=10).contains(&requests.len()), "{} requests for 90 events", requests.len());
    for request in &requests {
        let header = |name: &str| request.headers.get(name).map(String::as_str);
        ensure!(header("content-type") == Some("application/json"), "{request:?}");
        ensure!(header("authorization") == Some("Bearer secret"), "{request:?}");
        ensure!(serde_json::from_str::<Vec<Event>>(&request.body)?.len() <= 20, "{request:?}");
    }
    let status = until(&setup, "webhook https://127.0.0.1:8443", "to be done", idle)?;
    ensure!((status.written, status.lost, &status.error) == (90, 0, &None), "{status:?}");
    ensure!(!setup.log().contains("secret") && !status.name.contains("secret"), "{}", setup.log());
    Ok(())
}

/// Each would be an event that makes the next. Here the daemon has another number than in the events: a PID namespace.
fn own() -> Result<()> {
    let receiver = Receiver::start(8090, None)?;
    let setup = setup("[[sink]]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:8090/\"\ndelay = \"0s\"\n")?;
    let _daemon = setup.start()?;
    fire(0..1)?;
    setup.event("the sink's connect", |connect| connect.dst_port == 8090)?;
    fire(1..2)?;
    receiver.until_received(2)?;
    let told = receiver.events()?;
    let own = |event: &&Event| connect(event).is_some_and(|connect| connect.dst_port == 8090);
    ensure!(told.iter().find(own).is_none(), "{told:?}");
    Ok(())
}

/// What is wrong with each of them, and the words that tell what to do.
fn wrong() -> Result<()> {
    let certificates = Certificates::new()?;
    let issue = |by, file, name, days| certificates.issue(by, file, name, days).map(Some);
    let _receivers = [
        Receiver::start(8441, issue("other", "stranger", HERE, "2")?)?,
        Receiver::start(8442, issue("ours", "name", "DNS:other.example", "2")?)?,
        Receiver::start(8443, issue("ours", "old", HERE, "-1")?)?,
        Receiver::start(8444, None)?,
        Receiver::start(8445, issue("ours", "late", HERE, "2")?)?,
    ];
    let ca = |name: &str| format!("ca = \"{}\"", certificates.path(name, "pem"));
    fs::copy(certificates.path("other", "pem"), certificates.path("late", "pem"))?;
    let rows = [
        (
            "https://127.0.0.1:8441",
            ca("ours"),
            "issued by nobody in /run/certificates/ours.pem; put the certificate",
        ),
        ("https://localhost:8441", String::new(), "nobody whom this system believes; set `ca`"),
        ("https://127.0.0.1:8442", ca("ours"), "is not for 127.0.0.1, but for other.example; write a name"),
        ("https://127.0.0.1:8443", ca("ours"), "has expired; give the receiver a new one"),
        ("https://127.0.0.1:8444", ca("ours"), "does not speak TLS; write http:// in `url`"),
        ("http://127.0.0.1:8445", String::new(), "if it speaks TLS, write https:// in `url`"),
        ("https://127.0.0.1:8446", ca("ours"), "nothing listens there; start the receiver"),
        (
            "https://127.0.0.1:8447",
            "ca = \"/run/certificates/none\"".into(),
            "/run/certificates/none: No such file",
        ),
        ("http://receiver.invalid", String::new(), "correct the name in `url`, or see whether DNS works"),
        ("http://203.0.113.66:80", String::new(), "a policy of this host denies it; ask `enforcer explain`"),
    ];
    // Last: its authority is mended while the daemon runs.
    let late = ("https://localhost:8445", ca("late"), "issued by nobody in /run/certificates/late.pem");
    let rows = rows.into_iter().chain([late]).collect::<Vec<_>>();
    let sink = |(url, more, _): &(&str, String, &str)| {
        format!(
            "[[sink]]\ntype = \"webhook\"\nurl = \"{url}/\"\ntimeout = \"5s\"\ndelay = \"0s\"\n{more}\n{FILTER}\n"
        )
    };
    let setup = setup(&rows.iter().map(sink).collect::<String>())?;
    setup.write_policy(
        "deny.toml",
        &format!("[[rule]]\nname = \"r\"\naction = \"deny\"\nnetworks = [\"{BAD_V4}/32\"]\n"),
    )?;
    let _daemon = setup.start()?;
    fire(0..1)?;
    for (url, _, words) in &rows {
        let name = format!("webhook {url}");
        let status = until(&setup, &name, words, fails_with(words))?;
        println!("measured: {url}: {}", status.error.unwrap_or_default());
        status_says(&setup, &[&name, words])?;
    }
    fs::copy(certificates.path("ours", "pem"), certificates.path("late", "pem"))?;
    let mended = until(&setup, "webhook https://localhost:8445", "to work again", idle)?;
    ensure!((mended.written, mended.lost) == (1, 0), "{mended:?}");
    sound(&setup, 1)
}

const QUEUE: u16 = 60;

fn failing() -> Result<()> {
    let mut receiver = Receiver::start(8080, None)?;
    let setup = setup(&format!(
        "[[sink]]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:8080/\"\nqueue = {QUEUE}\nbatch = 10\ndelay = \"10ms\"\n\
         timeout = \"300ms\"\n{FILTER}\n"
    ))?;
    let _daemon = setup.start()?;
    let name = "webhook http://127.0.0.1:8080";
    // Fewer than may wait: none is lost.
    for (mode, fired, words) in
        [("500 0", 20, "HTTP 500"), ("200 2", 40, "no answer within 300ms; see whether")]
    {
        receiver.answers(mode)?;
        fire(fired - 20..fired)?;
        until(&setup, name, words, fails_with(words))?;
        sound(&setup, fired)?;
        receiver.answers("200 0")?;
        receiver.until_received(fired.into())?;
        let status = until(&setup, name, "to be done", idle)?;
        ensure!((status.written, status.lost) == (fired.into(), 0), "{status:?}");
    }
    // What it does not want at all is lost at once, with its words.
    receiver.answers("400 0")?;
    fire(40..50)?;
    let refused = until(&setup, name, "the refusal", fails_with("HTTP 400: the receiver says no"))?;
    let refused =
        until(&setup, name, "all refused", |status| idle(status) && status.lost > 0).unwrap_or(refused);
    ensure!((refused.written, refused.lost) == (40, 10), "{refused:?}");
    receiver.answers("200 0")?;
    // Down, and more events than may wait.
    drop(receiver.running.take());
    let fired = 50 + 5 * QUEUE;
    fire(50..fired)?;
    sound(&setup, fired)?;
    let away = until(&setup, name, "losses", |status| status.lost > 10)?;
    ensure!(away.written + away.lost + away.waiting == u64::from(fired), "{away:?}");
    status_says(&setup, &[name, "lost", "start the receiver"])?;
    receiver.restart()?;
    let back = until(&setup, name, "to send again", idle)?;
    ensure!(back.written + back.lost == u64::from(fired), "{back:?}");
    receiver.until_received(back.written)?;
    fire(fired..fired + 1)?;
    receiver.until_received(back.written + 1)?;
    let told = in_gaps(&receiver.events()?);
    ensure!(told == back.lost, "lost {}, and told of {told}", back.lost);
    println!("measured: of {fired} events {} were lost, all others came", back.lost);
    Ok(())
}
