//! What leaves past the hooks is refused on its way out; what was open before is left alone.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::{LayerName, VerdictName};
use enforcer_tests::client::way;
use enforcer_tests::daemon::{SOON, Setup, connect};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::server::Server;
use enforcer_tests::wait;

use super::{BAD_V4, GOOD_V4};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("raw_packets_past_cgroup_hooks_are_refused_at_egress", raw),
        test("audit_mode_refuses_no_packet_at_egress", audited),
        test("conditional_rules_are_left_to_the_hooks_at_egress", conditional),
        test("what_was_open_before_is_left_alone", established),
    ]
}

const RULE: &str = "[[rule]]\nname = \"r\"\naction = \"deny\"\nnetworks = [\"203.0.113.66\"]\n";

/// Three packets of a protocol of nobody's to an address, and one to another. Prints the errors.
fn send() -> Result<String> {
    const SCRIPT: &str = "
import socket, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)
def send(to):
    try:
        raw.sendto(b'x', (to, 0))
        return 0
    except OSError as error:
        return error.errno
print(*[send(to) for to in [sys.argv[1]] * 3 + [sys.argv[2]]])
";
    let output =
        Command::new("python3").args(["-c", SCRIPT, &BAD_V4.to_string(), &GOOD_V4.to_string()]).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// cgroup hooks see no raw sockets. One event a flow, however many packets.
fn raw() -> Result<()> {
    let setup = by_cgroup("egress = false", RULE)?;
    let daemon = setup.start()?;
    ensure!(send()? == "0 0 0 0", "refused by something else: {}", send()?);
    daemon.stop()?;

    // A rule with conditions that names every address (port 853 of all) takes nothing back.
    let setup = by_cgroup("doh = \"deny\"", RULE)?;
    let _daemon = setup.start()?;
    let (seen, refused) = (send()?, libc::EPERM);
    ensure!(seen == format!("{refused} {refused} {refused} 0"), "{seen}");
    let event = setup.event("the raw packet", |event| event.dst_ip == BAD_V4)?;
    ensure!(event.layer == LayerName::Egress && event.rule.as_deref() == Some("r"), "{event:?}");
    ensure!(event.protocol == "253" && event.socket_type.as_deref() == Some("raw"), "{event:?}");
    // Nobody is accused who only happened to run.
    ensure!(event.process.pid == 0 && event.process.comm.is_empty() && event.process.uid == 0, "{event:?}");
    ensure!(setup.status()?.counters.packets_refused == 3, "{:?}", setup.status()?.counters);
    let events = setup.events()?;
    let told = events.iter().filter_map(connect).filter(|event| event.dst_ip == BAD_V4).count();
    ensure!(told == 1, "{told} events of one flow");
    Ok(())
}

/// What would be refused leaves, and is told.
fn audited() -> Result<()> {
    let setup = by_cgroup("mode = \"audit\"", RULE)?;
    let _daemon = setup.start()?;
    let seen = send()?;
    ensure!(seen == "0 0 0 0", "{seen}");
    let event = setup.event("the raw packet", |event| event.dst_ip == BAD_V4)?;
    ensure!(event.layer == LayerName::Egress && event.verdict == VerdictName::Audit, "{event:?}");
    let counters = setup.status()?.counters;
    ensure!(counters.packets_refused == 0, "{counters:?}");
    Ok(())
}

/// Who sends is not known there, so a rule that speaks of somebody, or of ports, has no say.
fn conditional() -> Result<()> {
    let setup = by_cgroup("", &format!("{RULE}ports = [9]\n"))?;
    let _daemon = setup.start()?;
    let seen = send()?;
    ensure!(seen == "0 0 0 0", "{seen}");
    // The rule is in force, and the packets would be refused without its condition.
    let udp = way("udp_unconnected").context("no such way")?;
    super::refused(udp.name, udp.attempt, SocketAddr::new(BAD_V4, 9))?;
    setup.write_policy("deny.toml", RULE)?;
    wait::until("the packet to be refused", SOON, || {
        Ok((send()? == format!("{0} {0} {0} 0", libc::EPERM)).then_some(()))
    })?;
    // An exception for some may be one for whoever sends.
    let exception = RULE.replace("\"r\"", "\"some\"").replace("deny", "allow") + "ports = [9]\n";
    setup.write_policy("exception.toml", &exception)?;
    wait::until("the packet to pass", SOON, || Ok((send()? == "0 0 0 0").then_some(())))
}

fn by_cgroup(settings: &str, rule: &str) -> Result<Setup> {
    let setup = Setup::new(&format!("layer = \"cgroup\"\n{settings}"))?;
    setup.write_policy("deny.toml", rule)?;
    Ok(setup)
}

/// A connection lives on when its address is denied; a new one is refused.
fn established() -> Result<()> {
    let server = Server::start()?;
    let setup = super::setup("")?;
    let _daemon = setup.start()?;
    let to = SocketAddr::new(BAD_V4, server.port());
    let mut open = TcpStream::connect(to)?;
    setup.write_policy("deny.toml", RULE)?;
    let tcp = way("tcp_v4").context("no such way")?;
    wait::until("a connect to be refused", SOON, || {
        let refused = (tcp.attempt)(to, b"new").is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
        Ok(refused.then_some(()))
    })?;
    open.write_all(b"said-on-the-old-connection")?;
    drop(open);
    server.received("said-on-the-old-connection")?;
    ensure!(setup.status()?.counters.packets_refused == 0, "{:?}", setup.status()?.counters);
    Ok(())
}
