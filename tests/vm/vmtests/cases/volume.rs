//! How much is reported: repeats that become a number, and what is ignored. Nothing is lost from the counts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;

use anyhow::{Result, ensure};
use enforcer::engine::record::{Connect, Event, VerdictName};
use enforcer_tests::daemon::{Setup, connect, deny};
use enforcer_tests::harness::{Test, test};

use super::facts::own_cgroup;
use super::{BAD, BAD_V4, learn, resolver};

const PORT: u16 = 7;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("repeats_are_one_event_with_their_exact_number", repeats).patient(300),
        test("repeats_of_more_kinds_than_there_is_room_are_all_told", crowded).patient(600),
        test("repeats_counted_while_no_daemon_runs_are_told", dead).patient(120),
        test("ignored_connects_are_not_reported_and_still_denied", ignored).patient(120),
    ]
}

fn ours(setup: &Setup) -> Result<Vec<Connect>> {
    let events = setup.events()?;
    ensure!(!events.iter().any(|event| matches!(event, Event::Gap(_))), "something was lost");
    Ok(of(&events))
}

fn of(events: &[Event]) -> Vec<Connect> {
    events.iter().filter_map(connect).filter(|event| event.dst_port == PORT).cloned().collect()
}

fn sum<'a>(events: impl IntoIterator<Item = &'a Connect>) -> u64 {
    events.into_iter().map(|event| event.count).sum()
}

fn repeats() -> Result<()> {
    const SENT: u64 = 20_000;
    let _resolver = resolver()?;
    let setup = super::setup("aggregate = \"1s\"")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let (good, bad) = (SocketAddr::from(([203, 0, 113, 77], PORT)), SocketAddr::new(BAD_V4, PORT));
    socket.connect(good)?;
    let first = setup.event("the first connect, at once", |event| event.dst_port == PORT)?;
    ensure!(first.count == 1 && first.window.is_none(), "{first:?}");
    for n in 1..SENT {
        let refused = socket.connect(if n % 4 == 0 { bad } else { good }).is_err();
        ensure!(refused == (n % 4 == 0), "{n}");
    }
    daemon.stop()?;
    let events = ours(&setup)?;
    let (denied, allowed): (Vec<_>, Vec<_>) =
        events.iter().partition(|event| event.verdict == VerdictName::Deny);
    println!("measured: {} events for {SENT} connects", events.len());
    ensure!(sum(denied.iter().copied()) == SENT / 4 - 1, "{denied:?}");
    ensure!(sum(allowed.iter().copied()) == SENT * 3 / 4 + 1, "{allowed:?}");
    ensure!(events.len() < SENT as usize / 100, "{} events", events.len());
    for event in &events {
        let who = &event.process;
        ensure!(who.pid == first.process.pid && who.executable == first.process.executable, "{event:?}");
        ensure!(event.count == 1 || event.window.is_some(), "{event:?}");
        ensure!((event.dst_ip == BAD_V4) == (event.verdict == VerdictName::Deny), "{event:?}");
        let reported = |other: &Connect| other.window.is_none() && other.sequence == event.sequence;
        ensure!(events.iter().filter(|other| reported(other)).count() == 1, "no first event of {event:?}");
    }
    Ok(())
}

fn crowded() -> Result<()> {
    const KINDS: u32 = 20_000;
    let setup = super::setup("aggregate = \"1h\"")?;
    let daemon = setup.start()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for _ in 0..2 {
        for n in 0..KINDS {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + n);
            socket.connect((address, PORT))?;
        }
    }
    super::events::caught_up(&setup, KINDS.into())?;
    let counters = setup.status()?.counters;
    daemon.stop()?;
    let lost = setup
        .events()?
        .iter()
        .map(|event| if let Event::Gap(gap) = event { gap.lost_events } else { 0 })
        .sum::<u64>();
    // One by one they are more than an emulated machine's file sink takes.
    let told = sum(&of(&setup.events()?)) + lost;
    println!(
        "measured: {told} told of {}, {lost} of them in gaps; {} had no room",
        2 * KINDS,
        counters.unaggregated
    );
    ensure!(counters.unaggregated > 0, "there was room for all: this tests nothing");
    ensure!(told == u64::from(2 * KINDS), "{told}");
    Ok(())
}

fn dead() -> Result<()> {
    let setup = super::setup("aggregate = \"1h\"")?;
    let daemon = setup.start()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let to = SocketAddr::from(([203, 0, 113, 77], PORT));
    socket.connect(to)?;
    setup.event("the first connect", |event| event.dst_port == PORT)?;
    daemon.kill()?;
    for _ in 0..100 {
        socket.connect(to)?;
    }
    let daemon = setup.start()?;
    daemon.stop()?;
    let events = ours(&setup)?;
    ensure!(sum(&events) == 101, "{events:?}");
    Ok(())
}

fn ignored() -> Result<()> {
    let group = own_cgroup("ignored.service")?;
    let inner = own_cgroup("ignored.service/worker")?;
    let settings = format!(
        "[[ignore]]\nports = [1001, \"1005-1007\"]\nnetworks = [\"203.0.113.0/24\"]\n\
         [[ignore]]\ncgroups = [\"{}\"]\nports = [1010]\n\
         [[ignore]]\nuids = [1]\n\
         [[ignore]]\nverdicts = [\"deny\"]\nports = [1020]\n",
        group.shown()
    );
    let _resolver = resolver()?;
    let setup = super::setup(&settings)?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    // Address, port, user, in the inner group, reported
    let good = IpAddr::from([203, 0, 113, 77]);
    let rows: [(IpAddr, u16, u32, bool, bool); 14] = [
        (good, 1000, 0, false, true),
        (good, 1001, 0, false, false),
        (good, 1004, 0, false, true),
        (good, 1005, 0, false, false),
        (good, 1007, 0, false, false),
        (good, 1008, 0, false, true),
        (IpAddr::from([198, 51, 100, 1]), 1001, 0, false, true),
        (good, 1010, 0, false, true),
        (good, 1010, 0, true, false),
        (good, 1011, 0, true, true),
        (good, 1012, 1, false, false),
        (good, 1013, 2, false, true),
        (BAD_V4, 1001, 0, false, true),
        (BAD_V4, 1020, 0, false, false),
    ];
    for (address, port, uid, inside, _) in rows {
        let join = format!("open('{}/cgroup.procs', 'w').write('0')", inner.path.display());
        let script = format!(
            "import os, socket\n{}\nos.setresuid({uid}, {uid}, {uid})\n\
             s = socket.socket(type=socket.SOCK_DGRAM)\n\
             try: s.connect(('{address}', {port})); print('connected')\nexcept PermissionError: print('refused')\n",
            if inside { join.as_str() } else { "" }
        );
        let output = Command::new("python3").args(["-c", &script]).output()?;
        let want = if address == BAD_V4 { "refused" } else { "connected" };
        ensure!(String::from_utf8_lossy(&output.stdout).trim() == want, "{address}:{port}: {output:?}");
    }
    let counters = setup.status()?.counters;
    daemon.stop()?;
    let events = setup.events()?;
    for (address, port, uid, inside, reported) in rows {
        let is_it = |event: &&Connect| {
            event.dst_ip == address
                && event.dst_port == port
                && event.process.uid == uid
                && event.process.cgroup.as_deref().is_some_and(|path| path.ends_with("/worker")) == inside
        };
        let found = events.iter().filter_map(connect).filter(is_it).count();
        ensure!(found == usize::from(reported), "{address}:{port} uid {uid} inside {inside}: {found} events");
    }
    let ignored = rows.iter().filter(|row| !row.4).count() as u64;
    ensure!(counters.ignored == ignored, "{counters:?}");
    Ok(())
}
