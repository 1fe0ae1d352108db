//! `established = "kill"`: what was open when its address became denied ends, and nothing else does.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, bail, ensure};
use enforcer::engine::record::{Connect, Event, LayerName};
use enforcer_tests::client::way;
use enforcer_tests::daemon::{SOON, Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::network::{HOST_V4, in_far};
use enforcer_tests::resolver::lookup;
use enforcer_tests::server::Server;
use enforcer_tests::wait;
use rustix::net::{AddressFamily, SocketType};

use super::{BAD, BAD_V4, GOOD_V4, resolver};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("what_was_open_is_killed_soon_after_the_rule", rule),
        test("an_answer_kills_what_was_open_to_its_address", answer),
        test("kill_spares_what_would_not_be_refused", spared),
        test("audit_mode_kills_nothing", audited),
        test("what_was_open_before_the_start_is_killed_at_the_start", start),
    ]
}

const KILL: &str = "established = \"kill\"";

fn denied(name: &str, network: &str, more: &str) -> String {
    format!("[[rule]]\nname = \"{name}\"\naction = \"deny\"\nnetworks = [\"{network}\"]\n{more}\n")
}

/// As a shell on another host: nothing is said, and the connection stays.
fn open(to: IpAddr, server: &Server) -> Result<TcpStream> {
    let stream = TcpStream::connect(SocketAddr::new(to, server.port()))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// `None`: it is alive.
fn fate(mut stream: &TcpStream) -> Result<Option<()>> {
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == ErrorKind::ConnectionAborted => Ok(Some(())),
        other => bail!("it ended otherwise: {other:?}"),
    }
}

fn alive(what: &str, mut stream: TcpStream, server: &Server) -> Result<()> {
    stream.write_all(what.as_bytes()).with_context(|| what.to_owned())?;
    server.received(what)
}

fn told(setup: &Setup, what: &str, fits: impl Fn(&Connect) -> bool) -> Result<Connect> {
    wait::until(&format!("the event of {what}"), SOON, || {
        let events = setup.events()?;
        let mut killed = events.into_iter().filter_map(|event| match event {
            Event::Killed(killed) => Some(killed),
            _ => None,
        });
        Ok(killed.find(|killed| fits(killed)))
    })
}

/// The neighbour is on the same server.
fn rule() -> Result<()> {
    let server = Server::start()?;
    // A rule with conditions that names every address (port 853 of all) takes nothing back.
    let setup = super::setup(&format!("{KILL}\ndoh = \"deny\""))?;
    let _daemon = setup.start()?;
    let (victim, neighbour) = (open(BAD_V4, &server)?, open(GOOD_V4, &server)?);
    let datagrams = UdpSocket::bind("0.0.0.0:0")?;
    datagrams.connect(SocketAddr::new(BAD_V4, server.port()))?;
    datagrams.set_nonblocking(true)?;

    let written = wait::now();
    setup.write_policy("deny.toml", &denied("r", "203.0.113.66", ""))?;
    // Returns when the rule is in force, whoever read the file first.
    let reloaded = setup.command(&["reload"])?;
    ensure!(reloaded.status.success(), "{reloaded:?}");
    wait::until("the connection to end", SOON, || fate(&victim))?;
    println!("measured: ended {:?} after the rule was written", written.elapsed());
    wait::until("the UDP socket to be disconnected", SOON, || {
        Ok(datagrams.peer_addr().is_err().then_some(()))
    })?;
    alive("the neighbour", neighbour, &server)?;

    let comm = std::fs::read_to_string("/proc/self/comm")?;
    for protocol in ["tcp", "udp"] {
        let event = told(&setup, protocol, |killed| killed.protocol == protocol)?;
        ensure!(event.dst_ip == BAD_V4 && event.dst_port == server.port(), "{event:?}");
        ensure!(event.rule.as_deref() == Some("r") && event.layer == LayerName::Established, "{event:?}");
        ensure!(event.process.pid == std::process::id() && event.process.uid == 0, "{event:?}");
        ensure!(event.process.comm == comm.trim() && event.process.executable.is_some(), "{event:?}");
        ensure!(event.src_ip == Some(HOST_V4.into()) && event.count == 0, "{event:?}");
    }
    ensure!(setup.status()?.counters.connections_killed == 2, "{:?}", setup.status()?.counters);
    Ok(())
}

fn answer() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = super::setup(KILL)?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let victim = open(BAD_V4, &server)?;
    ensure!(fate(&victim)?.is_none(), "it ended before anybody said that it is denied");
    lookup(BAD)?;
    wait::until("the connection to end", SOON, || fate(&victim))?;
    let event = told(&setup, "the connection", |killed| killed.dst_ip == BAD_V4)?;
    ensure!(event.results == [BAD] && event.rule.as_deref() == Some("no-bad.example"), "{event:?}");
    Ok(())
}

fn spared() -> Result<()> {
    let server = Server::start()?;
    let setup = super::setup(KILL)?;
    let _daemon = setup.start()?;
    let at = |last: u8| IpAddr::from([203, 0, 113, last]);
    let victim = open(BAD_V4, &server)?;
    let (other_port, this_port) = (open(at(67), &server)?, open(at(68), &server)?);
    let (excepted, audited) = (open(at(69), &server)?, open(at(70), &server)?);
    let listener = TcpListener::bind((HOST_V4, 0))?;
    let from_far = in_far(|| connect_from(BAD_V4, listener.local_addr()?))??;
    let (mut accepted, peer) = listener.accept()?;
    ensure!(peer.ip() == BAD_V4, "{peer}");

    let rules = [
        denied("one", "203.0.113.66", ""),
        denied("two", "203.0.113.69", ""),
        denied("other-port", "203.0.113.67", "ports = [1]"),
        // It would be refused, but who connected is not known any more.
        denied("this-port", "203.0.113.68", &format!("ports = [{}]", server.port())),
        denied("exception", "203.0.113.69", "").replace("deny", "allow"),
        denied("audit", "203.0.113.70", "").replace("deny", "audit"),
    ];
    setup.write_policy("deny.toml", &rules.concat())?;
    wait::until("the connection to end", SOON, || fate(&victim))?;
    alive("to another port", other_port, &server)?;
    alive("to this port", this_port, &server)?;
    alive("an exception", excepted, &server)?;
    alive("audited", audited, &server)?;
    (&from_far).write_all(b"x")?;
    accepted.read_exact(&mut [0]).context("what was accepted")?;
    ensure!(setup.status()?.counters.connections_killed == 1, "{:?}", setup.status()?.counters);
    Ok(())
}

/// Of an address of the far side.
fn connect_from(source: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}

fn audited() -> Result<()> {
    let server = Server::start()?;
    let setup = super::setup(&format!("{KILL}\nmode = \"audit\""))?;
    let _daemon = setup.start()?;
    let victim = open(BAD_V4, &server)?;
    setup.write_policy("deny.toml", &denied("r", "203.0.113.66", ""))?;
    let reloaded = setup.command(&["reload"])?;
    ensure!(reloaded.status.success(), "{reloaded:?}");
    let tcp = way("tcp_v4").context("no such way")?;
    (tcp.attempt)(SocketAddr::new(BAD_V4, server.port()), b"audited")?;
    setup.event("what would be refused", |event| event.rule.as_deref() == Some("r"))?;
    alive("open before", victim, &server)?;
    ensure!(setup.status()?.counters.connections_killed == 0, "{:?}", setup.status()?.counters);
    Ok(())
}

fn start() -> Result<()> {
    let server = Server::start()?;
    let setup = super::setup(KILL)?;
    setup.write_policy("deny.toml", &denied("r", "203.0.113.66", ""))?;
    let (victim, neighbour) = (open(BAD_V4, &server)?, open(GOOD_V4, &server)?);
    let _daemon = setup.start()?;
    wait::until("the connection to end", SOON, || fate(&victim))?;
    alive("the neighbour", neighbour, &server)?;
    told(&setup, "the connection", |killed| killed.dst_ip == BAD_V4).map(drop)
}
