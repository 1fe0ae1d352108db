//! What events say.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::{Event, LayerName, NameKind, VerdictName};
use enforcer_tests::client::way;
use enforcer_tests::daemon::{Setup, connect, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::network::RESOLVER_V4;
use enforcer_tests::resolver::{Resolver, query};
use enforcer_tests::server::Server;
use enforcer_tests::wait;

use super::{BAD, BAD_V4, learn, resolver};

const TRIES: u32 = 10_000;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("event_fields_are_right", fields),
        test("event_has_the_source_of_a_bound_socket_by_lsm", || bound("lsm")),
        test("event_has_the_source_of_a_bound_socket_by_cgroup_hooks", || bound("cgroup")),
        test("event_volume_is_as_configured", volume),
        test("event_list_chooses_the_raw_hook_and_nothing_else", raw),
        test("event_list_chooses_tcp_alone", tcp_alone),
        test("event_says_where_its_names_come_from", origins),
        test("event_of_a_hostile_process_name_is_escaped", hostile_comm),
        test("event_carries_the_name_10000_times", names).patient(600),
        test("events_lost_are_counted", lost).patient(600),
    ]
}

/// Those that need no LSM hooks.
pub(crate) fn native() -> Vec<Test> {
    tests().into_iter().filter(|test| test.name.ends_with("_by_cgroup_hooks")).collect()
}

fn fields() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    let script = format!(
        "import os, socket\nos.setgid(54321)\nos.setuid(12345)\n\
         s = socket.socket()\ns.bind(('10.99.0.1', 4321))\n\
         try: s.connect(('{BAD_V4}', {}))\nexcept PermissionError: print(os.getpid(), os.getppid())\n",
        server.port()
    );
    let output = Command::new("python3").args(["-c", &script]).output()?;
    let words = String::from_utf8_lossy(&output.stdout);
    let (pid, ppid) = words.trim().split_once(' ').with_context(|| format!("python: {output:?} {words}"))?;
    let event = setup.event("python's connect", |event| event.process.uid == 12345)?;
    ensure!(
        event.process.pid.to_string() == pid
            && event.process.tid == event.process.pid
            && event.process.ppid.to_string() == ppid,
        "{event:?}"
    );
    ensure!(
        event.process.gid == 54321 && event.process.comm == "python3" && event.protocol == "tcp",
        "{event:?}"
    );
    ensure!(event.src_ip == Some("10.99.0.1".parse()?) && event.src_port == 4321, "{event:?}");
    ensure!(event.dst_ip == BAD_V4 && event.dst_port == server.port() && event.results == [BAD], "{event:?}");
    ensure!(event.verdict == VerdictName::Deny && event.layer == LayerName::LsmConnect, "{event:?}");
    ensure!(event.rule.as_deref() == Some("no-bad.example"), "{event:?}");
    ensure!(event.process.cgroup.as_deref() == Some("/test-event_fields_are_right"), "{event:?}");
    let executable = event.process.executable.as_deref().unwrap_or_default();
    ensure!(executable.starts_with("/usr/bin/python3"), "{event:?}");
    let found = setup.events()?.iter().any(|e| matches!(e, Event::TcpConnect(c) if *c == event));
    ensure!(found, "a TCP connect is not a net_tcp_connect");
    Ok(())
}

/// What the application chose is known when it calls; what the kernel chooses, not before the call is over.
fn bound(layer: &str) -> Result<()> {
    let setup = Setup::new(&format!("layer = \"{layer}\""))?;
    let _daemon = setup.start()?;
    // Kind of socket, its own address (port 0: unbound), whether it connects; what is told of the source.
    let (v4, v6, mapped) = ("10.99.0.1", "fd99::1", "::ffff:10.99.0.1");
    let rows = [
        ("STREAM", v4, 4001, true, Some(v4)),
        ("STREAM", v6, 4002, true, Some(v6)),
        ("STREAM", mapped, 4003, true, Some(v4)),
        ("STREAM", "0.0.0.0", 4004, true, None),
        ("STREAM", "0.0.0.0", 0, true, None),
        ("DGRAM", v4, 4005, true, Some(v4)),
        ("DGRAM", v4, 4006, false, Some(v4)),
        ("DGRAM", v6, 4007, false, Some(v6)),
        ("DGRAM", "::", 4008, false, None),
    ];
    for (at, (kind, own, port, connects, want)) in rows.into_iter().enumerate() {
        let (family, to) = match own {
            "10.99.0.1" | "0.0.0.0" => ("INET", "203.0.113.9"),
            "::ffff:10.99.0.1" => ("INET6", "::ffff:203.0.113.9"),
            _ => ("INET6", "2001:db8::9"),
        };
        let to_port = 2000 + at as u16;
        let bind = if port == 0 { String::new() } else { format!("s.bind(('{own}', {port}))") };
        let go = if connects { "s.connect(to)" } else { "s.sendto(b'x', to)" };
        let script = format!(
            "import socket\ns = socket.socket(socket.AF_{family}, socket.SOCK_{kind})\n{bind}\n\
             to = ('{to}', {to_port})\ntry: {go}\nexcept ConnectionRefusedError: pass\n"
        );
        let output = Command::new("python3").args(["-c", &script]).output()?;
        ensure!(output.status.success(), "{script}: {output:?}");
        let event = setup.event(&script, |event| event.dst_port == to_port)?;
        let want: Option<IpAddr> = want.map(str::parse).transpose()?;
        ensure!((event.src_ip, event.src_port) == (want, port), "{script}: {event:?}");
        ensure!(event.errno.is_none(), "nothing has returned yet: {event:?}");
    }
    Ok(())
}

fn volume() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let good = SocketAddr::new(super::GOOD_V4, server.port());
    let bad = SocketAddr::new(BAD_V4, server.port());
    let tcp = way("tcp_v4").context("tcp_v4")?.attempt;
    for (setting, want) in [("denied", vec![BAD_V4]), ("none", vec![])] {
        let setup = Setup::new(&format!("events = \"{setting}\""))?;
        setup.write_policy("deny.toml", &deny(BAD))?;
        let daemon = setup.start()?;
        learn(&setup, BAD, BAD_V4)?;
        tcp(good, b"x")?;
        super::refused("tcp", tcp, bad)?;
        daemon.stop()?; // writes out everything
        let events = setup.events()?;
        // The C library connects datagram sockets while it sorts addresses: those are not ours.
        let ours = events.iter().filter_map(connect).filter(|event| event.dst_port == server.port());
        let seen: Vec<IpAddr> = ours.map(|event| event.dst_ip).collect();
        ensure!(seen == want, "events = {setting}: {seen:?}");
    }
    Ok(())
}

fn raw() -> Result<()> {
    let setup = Setup::new("events = [\"security_socket_connect\"]")?;
    let daemon = setup.start()?;
    let script = "
import os, socket
def go(family, kind, address):
    s = socket.socket(family, kind)
    try: s.connect(address)
    except OSError: pass
    s.close()
go(socket.AF_UNIX, socket.SOCK_STREAM, '/run/no such.sock')
go(socket.AF_UNIX, socket.SOCK_DGRAM, b'\\0abstract\\n')
go(socket.AF_INET, socket.SOCK_STREAM, ('203.0.113.9', 1))
go(socket.AF_INET6, socket.SOCK_DGRAM, ('2001:db8::9', 2))
go(socket.AF_NETLINK, socket.SOCK_RAW, (0, 0))
print(os.getpid())
";
    let output = Command::new("python3").args(["-c", script]).output()?;
    let pid: u32 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    daemon.stop()?;
    let events = setup.events()?;
    ensure!(events.iter().all(|event| connect(event).is_none()), "a connect event although not chosen");
    let seen: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::SocketConnect(raw) if raw.process.pid == pid => Some(raw),
            _ => None,
        })
        .collect();
    let told: Vec<_> = seen
        .iter()
        .map(|raw| (&*raw.family, raw.socket_type.as_deref().unwrap_or("?"), raw.address.as_str(), raw.port))
        .collect();
    let want = [
        ("unix", "stream", "/run/no such.sock", None),
        ("unix", "dgram", "@abstract\\x0a", None),
        ("inet", "stream", "203.0.113.9", Some(1)),
        ("inet6", "dgram", "2001:db8::9", Some(2)),
        ("netlink", "raw", "00000000000000000000", None),
    ];
    ensure!(told == want, "{told:?}");
    let python = fs::canonicalize("/usr/bin/python3")?;
    ensure!(seen.iter().all(|raw| raw.process.executable.as_deref() == python.to_str()), "{seen:?}");
    Ok(())
}

fn tcp_alone() -> Result<()> {
    let server = Server::start()?;
    let setup = Setup::new("events = [\"net_tcp_connect\"]")?;
    let daemon = setup.start()?;
    let good = SocketAddr::new(super::GOOD_V4, server.port());
    for name in ["udp_connected", "udp_unconnected", "tcp_v4"] {
        (way(name).context(name)?.attempt)(good, b"x")?;
    }
    daemon.stop()?;
    let events = setup.events()?;
    let ours: Vec<_> =
        events.iter().filter_map(connect).filter(|event| event.dst_port == server.port()).collect();
    ensure!(ours.len() == 1 && ours[0].protocol == "tcp", "{ours:?}");
    Ok(())
}

fn origins() -> Result<()> {
    let _resolver = Resolver::start(
        &[("cdn.example", "203.0.113.31".parse()?)],
        &["--cname=www.example,cdn.example", "--local-ttl=60"],
    )?;
    let setup = Setup::new("")?;
    let _daemon = setup.start()?;
    enforcer_tests::resolver::lookup("www.example")?;
    UdpSocket::bind("0.0.0.0:0")?.connect("203.0.113.31:9")?;
    let event = setup.event("the connect", |event| event.dst_port == 9)?;
    ensure!(event.results == ["www.example", "cdn.example"] && !event.no_dns, "{event:?}");
    let kinds: Vec<_> = event.names.iter().map(|origin| (origin.name.as_str(), origin.kind)).collect();
    ensure!(kinds == [("www.example", NameKind::Asked), ("cdn.example", NameKind::Cname)], "{event:?}");
    for origin in &event.names {
        ensure!(origin.server == Some(IpAddr::V4(RESOLVER_V4)), "{origin:?}");
        ensure!(origin.age_ms < 60_000 && (1..=60).contains(&origin.ttl_left), "{origin:?}");
    }
    Ok(())
}

fn hostile_comm() -> Result<()> {
    let setup = Setup::new("")?;
    let _daemon = setup.start()?;
    let script = "open('/proc/self/comm', 'w').write('a\\n\\x1b[31m\\\"b')\n\
                  import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('203.0.113.9', 9))\n";
    Command::new("python3").args(["-c", script]).status()?;
    let event = setup.event("the connect", |event| event.dst_ip == IpAddr::from([203, 0, 113, 9]))?;
    ensure!(event.process.comm == r#"a\x0a\x1b[31m"b"#, "{event:?}");
    let text = fs::read_to_string(setup.events_file())?;
    ensure!(!text.contains('\u{1b}'), "an escape sequence reached the file");
    Ok(())
}

/// A connect made right after the answer, never seen before, 10,000 times: each event names the name.
fn names() -> Result<()> {
    let address = |n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + n);
    let hosts: Vec<(String, IpAddr)> =
        (1..=TRIES).map(|n| (format!("n{n}.example"), IpAddr::V4(address(n)))).collect();
    let records: Vec<(&str, IpAddr)> = hosts.iter().map(|(name, ip)| (name.as_str(), *ip)).collect();
    let _resolver = Resolver::start(&records, &[])?;
    let setup = Setup::new("")?;
    let daemon = setup.start()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((RESOLVER_V4, 53))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reply = [0; 512];
    for (name, ip) in &hosts {
        socket.send(&query(name))?;
        socket.recv(&mut reply).with_context(|| format!("no answer for {name}"))?;
        UdpSocket::bind("0.0.0.0:0")?.connect((*ip, 9))?;
    }
    caught_up(&setup, u64::from(TRIES))?;
    daemon.stop()?;
    let events = setup.events()?;
    let named = events.iter().filter_map(connect).filter(|event| event.dst_port == 9);
    let (right, wrong): (Vec<_>, Vec<_>) = named.partition(|event| {
        let IpAddr::V4(v4) = event.dst_ip else { return false };
        let n = u32::from(v4) - u32::from(Ipv4Addr::new(198, 18, 0, 0));
        event.results == [format!("n{n}.example")]
    });
    let gaps = events.iter().filter(|event| matches!(event, Event::Gap(_))).count();
    println!("{} events with the name, {} without, {gaps} gaps", right.len(), wrong.len());
    ensure!(
        right.len() == TRIES as usize && wrong.is_empty(),
        "{} right, {} wrong: {:?}",
        right.len(),
        wrong.len(),
        wrong.first()
    );
    Ok(())
}

/// The daemon sleeps while more is reported than the ring holds: seen + lost == sent.
fn lost() -> Result<()> {
    const SENT: u64 = 200_000;
    let setup = Setup::new("")?;
    let daemon = setup.start()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    daemon.signal(rustix::process::Signal::STOP)?;
    for _ in 0..SENT {
        socket.connect("203.0.113.77:7")?;
    }
    daemon.signal(rustix::process::Signal::CONT)?;
    caught_up(&setup, SENT)?;
    daemon.stop()?;
    let events = setup.events()?;
    let seen = events.iter().filter_map(connect).filter(|event| event.dst_port == 7).count() as u64;
    let gaps: u64 =
        events.iter().map(|event| if let Event::Gap(gap) = event { gap.lost_events } else { 0 }).sum();
    println!("{seen} seen, {gaps} lost, {SENT} sent");
    std::io::stdout().flush()?;
    ensure!(gaps > 0, "the ring held everything: this tests nothing");
    ensure!(seen + gaps == SENT, "{seen} + {gaps} != {SENT}");
    Ok(())
}

/// Waits until the daemon has told, or counted as lost, so many events. Asks seldom: each question is work for an
/// emulated machine with one CPU.
pub(crate) fn caught_up(setup: &Setup, events: u64) -> Result<()> {
    wait::until_every(Duration::from_secs(5), "the daemon to catch up", Duration::from_secs(400), || {
        let counters = setup.status()?.counters;
        Ok((counters.events + counters.lost_events >= events).then_some(()))
    })
}
