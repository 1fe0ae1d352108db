//! `net_flow_tcp_begin`: what is told of a TCP connection, whoever began it and by which call.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::{Direction, Event, FlowBegin};
use enforcer_tests::client::way;
use enforcer_tests::daemon::{SOON, Setup};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::network::{HOST_V4, HOST_V6, in_far};
use enforcer_tests::resolver::lookup;
use enforcer_tests::server::Server;
use enforcer_tests::wait;

use super::{GOOD, GOOD_V4, GOOD_V6, resolver};

const CHOSEN: &str = "events = [\"net_flow_tcp_begin\"]";
const PINS: &str = "/sys/fs/bpf/enforcer";

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("flow_out_has_both_ends_names_and_owner_however_it_began", out),
        test("flow_out_of_a_process_that_is_gone_has_its_facts", gone),
        test("flow_in_belongs_to_who_listens", accepted),
        test("flow_in_belongs_to_who_listened_before_the_daemon", before),
        test("flow_between_two_ends_here_is_told_once_a_direction", both_ends),
        test("flow_owners_outlive_the_daemon", restart),
        test("flow_is_off_unless_chosen_and_leaves_nothing", off),
        test("flow_losses_are_counted", lost).patient(300),
    ]
}

/// Each way, and whether no connect call starts it.
fn out() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = super::setup(CHOSEN)?;
    let daemon = setup.start()?;
    lookup(GOOD)?;
    let v6: IpAddr = GOOD_V6.parse()?;
    let rows = [
        ("tcp_v4", GOOD_V4),
        ("tcp_v6", v6),
        ("tcp_v4_mapped", GOOD_V4),
        ("tcp_nonblocking", GOOD_V4),
        ("tcp_reconnected", GOOD_V4),
        ("fast_open", GOOD_V4),
        ("fast_open_v6", v6),
        ("fast_open_mapped", GOOD_V4),
        ("fast_open_connect", GOOD_V4),
    ];
    for (name, ip) in rows {
        let token = format!("by-{name}");
        (way(name).context(name)?.attempt)(SocketAddr::new(ip, server.port()), token.as_bytes())
            .with_context(|| name.to_owned())?;
        server.received(&token)?;
    }
    daemon.stop()?; // writes out everything
    let flows = flows(&setup)?;
    let is_ours = |flow: &&FlowBegin| flow.dst_port == server.port() && flow.direction == Direction::Out;
    let ours: Vec<&FlowBegin> = flows.iter().filter(is_ours).collect();
    let told: Vec<_> = ours.iter().map(|flow| flow.dst_ip).collect();
    ensure!(told == rows.map(|(_, ip)| ip), "one event each, in order: {ours:?}");
    let executable = std::env::current_exe()?;
    for flow in ours {
        let host = if flow.dst_ip.is_ipv4() { IpAddr::V4(HOST_V4) } else { IpAddr::V6(HOST_V6) };
        ensure!(flow.src_ip == host && flow.src_port > 0, "{flow:?}");
        ensure!(flow.dst_names == [GOOD] && flow.src_names.is_empty() && flow.sequence > 0, "{flow:?}");
        let owner = flow.process.as_ref().context("no process")?;
        ensure!(
            owner.executable.as_deref() == executable.to_str() && owner.process_start.is_some(),
            "{flow:?}"
        );
        let group = "/test-flow_out_has_both_ends_names_and_owner_however_it_began";
        ensure!(owner.cgroup.as_deref().is_some_and(|path| path.ends_with(group)), "{flow:?}");
        ensure!(super::is_native() || owner.pid == std::process::id(), "{flow:?}");
    }
    Ok(())
}

/// It closes its socket and ends before anybody can look.
fn gone() -> Result<()> {
    let server = Server::start()?;
    let setup = super::setup(CHOSEN)?;
    let daemon = setup.start()?;
    daemon.signal(rustix::process::Signal::STOP)?;
    let script = format!(
        "import os, socket\nos.setgid(54321); os.setuid(12345)\n\
         s = socket.create_connection(('{GOOD_V4}', {})); print(s.getsockname()[1])\n",
        server.port()
    );
    let said = Command::new("python3").args(["-c", &script]).output()?;
    let port: u16 =
        String::from_utf8_lossy(&said.stdout).trim().parse().with_context(|| format!("{said:?}"))?;
    daemon.signal(rustix::process::Signal::CONT)?;
    let flow = flow(&setup, "python's", |flow| flow.src_port == port && flow.direction == Direction::Out)?;
    let owner = flow.process.as_ref().context("no process")?;
    ensure!((owner.uid, owner.gid, owner.comm.as_str()) == (12345, 54321, "python3"), "{flow:?}");
    let python = fs::canonicalize("/usr/bin/python3")?;
    ensure!(owner.executable.as_deref() == python.to_str(), "{flow:?}");
    Ok(())
}

fn accepted() -> Result<()> {
    let _resolver = resolver()?;
    let setup = super::setup(CHOSEN)?;
    let daemon = setup.start()?;
    // Two that differ in nothing but the address: who is who shows in the user.
    let first = Listener::start(&HOST_V4.to_string(), 0, 12345)?;
    let other = Listener::start("127.0.0.1", first.port, 23456)?;
    let any = Listener::start("::", 0, 34567)?;
    for (to, listener, uid) in [
        (SocketAddr::from((HOST_V4, first.port)), &first, 12345),
        (SocketAddr::from((HOST_V4, any.port)), &any, 34567),
        (SocketAddr::from((HOST_V6, any.port)), &any, 34567),
    ] {
        let from = connect_from_far(to)?;
        let flow = inbound(&setup, from)?;
        ensure!(flow.dst_ip == to.ip() && flow.dst_port == listener.port, "{flow:?}");
        let owner = flow.process.as_ref().context("no process")?;
        ensure!((owner.uid, owner.comm.as_str()) == (uid, "python3"), "{flow:?}");
        ensure!(owner.process_start.is_some() && owner.executable.is_some(), "{flow:?}");
    }
    let near = TcpStream::connect(("127.0.0.1", other.port))?;
    let flow = inbound(&setup, near.local_addr()?)?;
    ensure!(flow.process.as_ref().is_some_and(|owner| owner.uid == 23456), "{flow:?}");
    daemon.stop()
}

fn before() -> Result<()> {
    let listener = Listener::start("0.0.0.0", 0, 12345)?;
    let setup = super::setup(CHOSEN)?;
    let _daemon = setup.start()?;
    let from = connect_from_far((HOST_V4, listener.port).into())?;
    let flow = inbound(&setup, from)?;
    let owner = flow.process.as_ref().context("no process")?;
    ensure!((owner.uid, owner.comm.as_str()) == (12345, "python3"), "{flow:?}");
    Ok(())
}

fn both_ends() -> Result<()> {
    let setup = super::setup(CHOSEN)?;
    let daemon = setup.start()?;
    let listener = Listener::start("127.0.0.1", 0, 12345)?;
    let near = TcpStream::connect(("127.0.0.1", listener.port))?;
    let (src, dst) = (near.local_addr()?, near.peer_addr()?);
    inbound(&setup, src)?;
    daemon.stop()?;
    let flows = flows(&setup)?;
    let ours = flows.iter().filter(|flow| flow.src_port == src.port() && flow.dst_port == dst.port());
    let told: Vec<_> =
        ours.map(|flow| (flow.direction, flow.process.as_ref().map(|owner| owner.uid))).collect();
    ensure!(told == [(Direction::Out, Some(0)), (Direction::In, Some(12345))], "{told:?}");
    Ok(())
}

fn restart() -> Result<()> {
    let setup = super::setup(CHOSEN)?;
    let daemon = setup.start()?;
    let listener = Listener::start("0.0.0.0", 0, 12345)?;
    daemon.kill()?;
    let alone = connect_from_far((HOST_V4, listener.port).into())?;
    let _daemon = setup.start()?;
    let after = connect_from_far((HOST_V4, listener.port).into())?;
    for from in [alone, after] {
        let flow = inbound(&setup, from)?;
        let owner = flow.process.as_ref().context("no process")?;
        // What is looked up at a start has none.
        ensure!(owner.uid == 12345 && owner.process_start.is_some(), "{flow:?}");
    }
    Ok(())
}

fn off() -> Result<()> {
    let server = Server::start()?;
    let good = SocketAddr::new(GOOD_V4, server.port());
    for (settings, wanted) in [("", false), (CHOSEN, true), ("events = [\"net_tcp_connect\"]", false)] {
        let setup = super::setup(settings)?;
        let daemon = setup.start()?;
        ensure!(pinned("link_tcp_flow")? == wanted, "{settings}: the program");
        ensure!(pinned("OWNERS")? == wanted, "{settings}: the owners");
        (way("tcp_v4").context("tcp_v4")?.attempt)(good, b"x")?;
        if wanted {
            // Both ends are here. What is not read yet, the next daemon would tell.
            for direction in [Direction::Out, Direction::In] {
                let is_ours =
                    |flow: &FlowBegin| flow.dst_port == server.port() && flow.direction == direction;
                flow(&setup, "the connection", is_ours)?;
            }
            daemon.kill()?; // the next one takes over what is pinned
        } else {
            daemon.signal(rustix::process::Signal::INT)?;
            ensure!(daemon.ended()?.success(), "{}", setup.log());
            ensure!(flows(&setup)?.is_empty(), "{settings}: {:?}", flows(&setup)?);
        }
    }
    Ok(())
}

/// The daemon sleeps until the ring is full; what then begins is lost, and counted.
fn lost() -> Result<()> {
    const FILL: u64 = 60_000;
    let server = Server::start()?;
    let setup = super::setup("events = [\"net_flow_tcp_begin\", \"net_udp_connect\"]")?;
    let daemon = setup.start()?;
    let before = setup.status()?.counters;
    let begin = || TcpStream::connect((GOOD_V4, server.port()));
    daemon.signal(rustix::process::Signal::STOP)?;
    begin()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for _ in 0..FILL {
        socket.connect("203.0.113.77:7")?;
    }
    for _ in 0..10 {
        begin()?;
    }
    daemon.signal(rustix::process::Signal::CONT)?;
    // Each connection has both ends on this machine.
    let sent = FILL + 2 * 11;
    super::events::caught_up(&setup, before.events + before.lost_events + sent)?;
    daemon.stop()?;
    let events = setup.events()?;
    let seen = events.iter().filter(|event| match event {
        Event::FlowBegin(flow) => flow.dst_port == server.port(),
        Event::UdpConnect(connect) => connect.dst_port == 7,
        _ => false,
    });
    let flows = flows(&setup)?.iter().filter(|flow| flow.dst_port == server.port()).count();
    let seen = seen.count() as u64;
    let gaps: u64 =
        events.iter().map(|event| if let Event::Gap(gap) = event { gap.lost_events } else { 0 }).sum();
    println!("{seen} seen, {flows} of them flows, {gaps} lost, {sent} sent");
    ensure!(flows == 2, "the ring held everything, or not even the first: this tests nothing");
    ensure!(seen + gaps == sent, "{seen} + {gaps} != {sent}");
    Ok(())
}

fn flows(setup: &Setup) -> Result<Vec<FlowBegin>> {
    let of = |event| if let Event::FlowBegin(flow) = event { Some(flow) } else { None };
    Ok(setup.events()?.into_iter().filter_map(of).collect())
}

fn flow(setup: &Setup, what: &str, fits: impl Fn(&FlowBegin) -> bool) -> Result<FlowBegin> {
    wait::until(&format!("the event of {what}"), SOON, || {
        Ok(flows(setup)?.into_iter().find(|flow| fits(flow)))
    })
}

/// The event of a connection that comes from there.
fn inbound(setup: &Setup, from: SocketAddr) -> Result<FlowBegin> {
    flow(setup, &format!("what comes from {from}"), |flow| {
        (flow.src_ip, flow.src_port, flow.direction) == (from.ip(), from.port(), Direction::In)
    })
}

/// Where it came from.
fn connect_from_far(to: SocketAddr) -> Result<SocketAddr> {
    Ok(in_far(|| TcpStream::connect(to)?.local_addr())??)
}

fn pinned(name: &str) -> Result<bool> {
    let versions = fs::read_dir(Path::new(PINS))?;
    Ok(versions.flatten().any(|version| version.path().join(name).exists()))
}

/// A process of another user that waits for connections.
struct Listener {
    process: Child,
    port: u16,
}

impl Listener {
    fn start(address: &str, port: u16, uid: u32) -> Result<Self> {
        let script = format!(
            "import os, socket\nos.setuid({uid})\n\
             s = socket.create_server(('{address}', {port}), family={family}, dualstack_ipv6={dual})\n\
             print(s.getsockname()[1], flush=True)\n\
             while True: s.accept()[0].close()\n",
            family = if address.contains(':') { "socket.AF_INET6" } else { "socket.AF_INET" },
            dual = if address == "::" { "True" } else { "False" },
        );
        let mut process = Command::new("python3")
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .context("python3")?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("no output")?).read_line(&mut line)?;
        Ok(Self { process, port: line.trim().parse().with_context(|| format!("python: {line}"))? })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
