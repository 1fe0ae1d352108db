//! What became of a connect: told when the call returns.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::VerdictName;
use enforcer_tests::client::way;
use enforcer_tests::daemon::{Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::server::Server;

use super::{BAD, BAD_V4, GOOD_V4, learn, resolver};

const ESTABLISHED: u16 = 0;
const ECONNREFUSED: u16 = 111;
const EINPROGRESS: u16 = 115;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("outcome_source_and_latency_are_told_when_the_call_returns", outcome),
        test("outcome_of_an_interrupted_connect_is_told", interrupted),
        test("outcome_cannot_be_had_by_cgroup_hooks_and_status_says_so", without),
    ]
}

fn outcome() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = Setup::new("outcome = true")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    let host = Some(IpAddr::from([10, 99, 0, 1]));
    // Way, address, port, errno, whether there is a latency
    let rows = [
        ("tcp_v4", GOOD_V4, server.port(), ESTABLISHED, true),
        ("tcp_v4_mapped", GOOD_V4, server.port(), ESTABLISHED, true),
        ("tcp_nonblocking", GOOD_V4, server.port(), EINPROGRESS, false),
        ("udp_connected", GOOD_V4, server.port(), ESTABLISHED, false),
        ("tcp_v4", IpAddr::from([203, 0, 113, 20]), 1, ECONNREFUSED, false),
    ];
    let mut seen = 0;
    for (name, address, port, errno, latency) in rows {
        let attempt = way(name).context(name)?.attempt;
        let result = attempt(SocketAddr::new(address, port), b"x");
        ensure!(result.is_ok() == (errno != ECONNREFUSED), "{name}: {result:?}");
        let event = setup.event(name, |event| event.sequence > seen && event.dst_ip == address)?;
        seen = event.sequence;
        ensure!(event.errno == Some(errno), "{name}: {event:?}");
        ensure!(event.src_ip == host || errno == ECONNREFUSED, "{name}: {event:?}");
        ensure!(event.src_port > 0 || errno == ECONNREFUSED, "{name}: {event:?}");
        ensure!(event.latency_ns.is_some() == latency, "{name}: {event:?}");
        ensure!(event.latency_ns.is_none_or(|ns| (1..5_000_000_000).contains(&ns)), "{name}: {event:?}");
    }
    super::refused("tcp", way("tcp_v4").context("tcp_v4")?.attempt, SocketAddr::new(BAD_V4, server.port()))?;
    let event = setup.event("the denied connect", |event| event.verdict == VerdictName::Deny)?;
    ensure!(event.errno == Some(1) && event.latency_ns.is_none(), "{event:?}");
    Ok(())
}

/// Nobody has that address on the link, which takes seconds to find out; a signal ends the wait, and the process.
fn interrupted() -> Result<()> {
    let setup = Setup::new("outcome = true")?;
    let _daemon = setup.start()?;
    let route = Command::new("ip").args(["route", "add", "10.99.9.9/32", "dev", "near"]).status()?;
    ensure!(route.success(), "ip route: {route}");
    let script = "import signal, socket\n\
                  signal.signal(signal.SIGALRM, signal.SIG_DFL); signal.setitimer(signal.ITIMER_REAL, 0.5)\n\
                  socket.socket().connect(('10.99.9.9', 9))\n";
    let status = Command::new("python3").args(["-c", script]).status()?;
    ensure!(!status.success(), "{status}");
    let event = setup.event("the interrupted connect", |event| event.dst_port == 9)?;
    ensure!(event.errno == Some(4) && event.latency_ns.is_none(), "{event:?}");
    ensure!(event.process.comm == "python3", "{event:?}");
    Ok(())
}

fn without() -> Result<()> {
    let setup = Setup::new("outcome = true\nlayer = \"cgroup\"")?;
    let _daemon = setup.start()?;
    let warnings = setup.status()?.warnings;
    ensure!(warnings.iter().any(|warning| warning.contains("outcome = true")), "{warnings:?}");
    let attempt = way("udp_connected").context("udp_connected")?.attempt;
    attempt((IpAddr::from([203, 0, 113, 9]), 9).into(), b"x")?;
    let event = setup.event("the connect", |event| event.dst_port == 9)?;
    ensure!(event.errno.is_none(), "{event:?}");
    Ok(())
}
