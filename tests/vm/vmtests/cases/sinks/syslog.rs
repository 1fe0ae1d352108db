//! A real rsyslog, restarted in between.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::Event;
use enforcer_tests::daemon::Setup;
use enforcer_tests::harness::{Test, test};
use enforcer_tests::wait;

use super::{FILTER, POLL, Program, SOON, fire, idle, in_gaps, numbers, sound, status_says, until};
use crate::cases::setup;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test("sink_syslog_by_unix_socket_outlives_rsyslog", || {
            restarted("socket = \"/run/rsyslog/log\"", "imuxsock")
        }),
        test("sink_syslog_by_udp_outlives_rsyslog", || restarted("udp = \"127.0.0.1:5140\"", "imudp")),
        test("sink_syslog_by_tcp_outlives_rsyslog", || restarted("tcp = \"127.0.0.1:5140\"", "imtcp")),
        test("sink_syslog_speaks_rfc3164_to_dev_log", old),
    ]
}

const DIRECTORY: &str = "/run/rsyslog";
/// The parts that rsyslog's own parser found, and the message.
const TEMPLATE: &str = "%inputname%|%protocol-version%|%app-name%|%procid%|%msgid%|\
    %syslogfacility-text%.%syslogseverity-text%|%hostname%|%msg%\\n";
const PARTS: usize = 8;
/// Fewer than are fired while nobody listens.
const QUEUE: u16 = 40;

struct Rsyslog(Program);

impl Rsyslog {
    fn start() -> Result<Self> {
        fs::create_dir_all(DIRECTORY)?;
        let settings = format!(
            "module(load=\"imuxsock\" SysSock.Use=\"off\")\nmodule(load=\"imudp\")\nmodule(load=\"imtcp\")\n\
             input(type=\"imuxsock\" Socket=\"{DIRECTORY}/log\" UseSpecialParser=\"off\" ParseHostname=\"on\")\n\
             input(type=\"imuxsock\" Socket=\"{DIRECTORY}/dev-log\")\n\
             input(type=\"imudp\" address=\"127.0.0.1\" port=\"5140\")\n\
             input(type=\"imtcp\" address=\"127.0.0.1\" port=\"5140\")\n\
             template(name=\"out\" type=\"string\" string=\"{TEMPLATE}\")\n\
             action(type=\"omfile\" file=\"{DIRECTORY}/out\" template=\"out\")\n"
        );
        fs::write(format!("{DIRECTORY}/conf"), settings)?;
        let mut command = Command::new("rsyslogd");
        command.args(["-n", "-f", &format!("{DIRECTORY}/conf"), "-i", &format!("{DIRECTORY}/pid")]);
        let running = Program::start(&mut command)?;
        wait::until_every(POLL, "rsyslog to listen", SOON, || {
            Ok(Some(TcpStream::connect("127.0.0.1:5140")?))
        })?;
        Ok(Self(running))
    }

    /// Each message in its parts, the last of which is what it says.
    fn messages() -> Vec<Vec<String>> {
        let text = fs::read_to_string(PathBuf::from(DIRECTORY).join("out")).unwrap_or_default();
        let parts = |line: &str| line.splitn(PARTS, '|').map(|part| part.trim().to_owned()).collect();
        text.lines()
            .map(parts)
            .filter(|parts: &Vec<_>| parts.get(2).is_some_and(|app| app == "enforcer"))
            .collect()
    }

    fn events() -> Result<Vec<Event>> {
        let parse = |parts: Vec<String>| {
            let text = parts.last().context("an empty line")?;
            serde_json::from_str(text).with_context(|| text.clone())
        };
        Self::messages().into_iter().map(parse).collect()
    }

    fn until_received(count: u64) -> Result<()> {
        wait::until_every(POLL, &format!("rsyslog to receive {count} events"), SOON, || {
            let seen = numbers(&Self::events()?).len();
            ensure!(seen as u64 == count, "it has {seen}");
            Ok(Some(()))
        })
    }
}

/// A sink, and nothing left of the rsyslog before.
fn sink(place: &str, more: &str) -> Result<Setup> {
    let _ = fs::remove_dir_all(DIRECTORY);
    setup(&format!(
        "[[sink]]\ntype = \"syslog\"\nfacility = \"local3\"\nformat = \"json\"\nqueue = {QUEUE}\n{FILTER}\n{place}\n{more}\n"
    ))
}

/// Everything arrives or is counted, and what the daemon could not send for so long stands in the stream as a gap.
fn restarted(place: &str, input: &str) -> Result<()> {
    let setup = sink(place, "protocol = \"rfc5424\"")?;
    let rsyslog = Rsyslog::start()?;
    let _daemon = setup.start()?;
    fire(0..10)?;
    Rsyslog::until_received(10)?;
    let pid = setup.status()?.pid.to_string();
    let message = Rsyslog::messages().swap_remove(0);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    ensure!(
        message[..PARTS - 1] == [input, "1", "enforcer", &pid, "net_udp_connect", "local3.info", &host],
        "{message:?}"
    );

    rsyslog.0.stop()?;
    let fired = 10 + 5 * QUEUE;
    fire(10..fired)?;
    sound(&setup, fired)?;
    let away = until(&setup, "syslog", "losses", |status| status.lost > 0)?;
    ensure!(away.written + away.lost + away.waiting == u64::from(fired), "{away:?}");
    status_says(&setup, &["sink", "syslog", "lost"])?;

    let _rsyslog = Rsyslog::start()?;
    let back = until(&setup, "syslog", "to send again", idle)?;
    let error = back.error.unwrap_or_default();
    ensure!(error.starts_with("recovered from: "), "{error}");
    ensure!(back.written + back.lost == u64::from(fired), "{} + {}", back.written, back.lost);
    Rsyslog::until_received(back.written)?;
    fire(fired..fired + 10)?;
    Rsyslog::until_received(back.written + 10)?;
    let told = in_gaps(&Rsyslog::events()?);
    ensure!(told == back.lost, "lost {}, and told of {told}", back.lost);
    println!("measured: of {fired} events {} were lost while rsyslog was away: {error}", back.lost);
    Ok(())
}

/// What a daemon on /dev/log takes without being told anything.
fn old() -> Result<()> {
    let setup = sink("socket = \"/run/rsyslog/dev-log\"", "")?;
    let _rsyslog = Rsyslog::start()?;
    let _daemon = setup.start()?;
    fire(0..10)?;
    Rsyslog::until_received(10)?;
    let message = Rsyslog::messages().swap_remove(0);
    let pid = setup.status()?.pid.to_string();
    ensure!(message[1..4] == ["0", "enforcer", pid.as_str()] && message[5] == "local3.info", "{message:?}");
    Ok(())
}
