//! The promise: when an application can read the answer for a denied name, its addresses are already denied.
//! Each name is fresh, each address is fresh, and the connect follows the answer at once.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::daemon::Setup;
use enforcer_tests::harness::{Test, test};
use enforcer_tests::network::RESOLVER_V4;
use enforcer_tests::resolver::{Resolver, query};
use rustix::process::Signal;

/// For each state of the daemon.
const TRIES: u32 = 1000;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("race_no_connect_gets_through_by_lsm", by_lsm).patient(300),
        test("race_no_connect_gets_through_by_cgroup_hooks", by_cgroup).patient(300),
    ]
}

fn by_lsm() -> Result<()> {
    race("layer = \"lsm\"")
}

fn by_cgroup() -> Result<()> {
    race("layer = \"cgroup\"")
}

fn race(settings: &str) -> Result<()> {
    let kinds =
        ["running.tracker.example", "ads-stopped.example", "killed.tracker.example", "innocent.example"];
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 1));
    let hosts: Vec<(String, IpAddr)> = (0..)
        .zip(kinds)
        .flat_map(|(kind, name)| (0..TRIES).map(move |n| (name_of(name, n), kind * TRIES + n)))
        .map(|(name, n)| (name, IpAddr::V4(Ipv4Addr::from(first + n))))
        .collect();
    let records: Vec<(&str, IpAddr)> = hosts.iter().map(|(name, ip)| (name.as_str(), *ip)).collect();
    let _resolver = Resolver::start(&records, &[])?;
    let setup = Setup::new(settings)?;
    let rule = "[[rule]]\nname = \"r\"\naction = \"deny\"\nhosts = [\".tracker.example\", \"*ads-[a-z]*.example\"]\n";
    setup.write_policy("deny.toml", rule)?;
    let daemon = setup.start()?;
    let mut of_kind = hosts.chunks(TRIES as usize);
    let mut through = || of_kind.next().context("a kind of names").and_then(connects);

    let running = through()?;
    let before = setup.status()?.dns;
    daemon.signal(Signal::STOP)?;
    let stopped = through()?;
    daemon.signal(Signal::CONT)?;
    daemon.kill()?;
    let killed = through()?;
    let innocent = through()?;
    println!(
        "got through of {TRIES}: {running} running, {stopped} stopped, {killed} killed; innocent {innocent}"
    );
    ensure!(
        (running, stopped, killed) == (0, 0, 0),
        "{running} {stopped} {killed} got through of {TRIES} each"
    );
    ensure!(innocent == TRIES, "{innocent} innocent connects of {TRIES} got through: this tests nothing");
    ensure!(before.matched >= u64::from(TRIES) && before.late.is_empty(), "{before:?}");
    Ok(())
}

fn name_of(kind: &str, n: u32) -> String {
    format!("n{n}-{kind}")
}

/// How many of the names could be connected to right after their answer.
fn connects(hosts: &[(String, IpAddr)]) -> Result<u32> {
    let resolver = UdpSocket::bind("0.0.0.0:0")?;
    resolver.connect((RESOLVER_V4, 53))?;
    resolver.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reply = [0; 512];
    let mut through = 0;
    for (name, ip) in hosts {
        // Made before, so that nothing but the connect stands behind the answer.
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        resolver.send(&query(name))?;
        resolver.recv(&mut reply).with_context(|| format!("no answer for {name}"))?;
        match socket.connect((*ip, 9)) {
            Ok(()) => through += 1,
            Err(error) => ensure!(error.raw_os_error() == Some(libc::EPERM), "{name}: {error}, not EPERM"),
        }
    }
    Ok(through)
}
