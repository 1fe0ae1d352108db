//! Every way to the network, as `enforcer coverage` tries them on the running daemon, by each combination of layers.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::way;
use enforcer_tests::daemon::{Setup, connect};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::server::Server;
use serde::Deserialize;

use super::{BAD_V4, GOOD_V4, refused};

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = vec![
        test("every_way_is_refused_by_lsm", by_lsm),
        test("every_way_is_refused_by_both", by_both),
        test("with_both_layers_one_connect_is_one_event", one_event),
        test("af_unspec_connect_is_left_to_the_kernel", af_unspec_connect),
    ];
    tests.extend(native());
    tests
}

/// Where there are no LSM programs.
pub(crate) fn native() -> Vec<Test> {
    vec![
        test("every_way_is_refused_by_cgroup_hooks", by_cgroup),
        test("coverage_finds_what_nobody_looks_at", holes),
        test("coverage_works_whatever_the_default_and_the_mode", whatever),
    ]
}

fn by_lsm() -> Result<()> {
    every_way("lsm", lsm_catcher)
}

fn lsm_catcher(way: &str) -> &'static str {
    match way {
        "mptcp_subflow" | "sctp_connectx" => "egress",
        "sctp_sendto" => "lsm_sendmsg",
        way if way.starts_with("fast_open") && way != "fast_open_connect" => "lsm_sendmsg",
        way if way.starts_with("raw") && way != "raw_connected" => "lsm_sendmsg",
        "io_uring_sendmsg" | "io_uring_send_zc" => "lsm_sendmsg",
        way if is_unconnected(way) => "lsm_sendmsg",
        _ => "lsm_connect",
    }
}

fn by_cgroup() -> Result<()> {
    every_way("cgroup", |way| match way {
        way if way.starts_with("sctp") || way.starts_with("raw") => "egress",
        "io_uring_sendmsg" | "io_uring_send_zc" => "cgroup_sendmsg",
        way if is_unconnected(way) => "cgroup_sendmsg",
        _ => "cgroup_connect",
    })
}

/// As by LSM; what the kernel itself connects, the cgroup hook sees.
fn by_both() -> Result<()> {
    every_way("both", |way| if way == "mptcp_subflow" { "cgroup_connect" } else { lsm_catcher(way) })
}

fn is_unconnected(way: &str) -> bool {
    way.starts_with("udp")
        && (!way.starts_with("udp_connected") || way == "udp_connected_elsewhere")
        && way != "udp_reconnected"
}

/// As `enforcer coverage --json` has it.
#[derive(Debug, Deserialize)]
struct Row {
    way: String,
    verdict: String,
    caught: Vec<String>,
    why: Option<String>,
}

const OUTSIDE: [&str; 7] =
    ["open_tcp", "open_udp", "open_inherited", "open_passed", "packet", "unspecified", "unspecified_v6"];

/// Each row is looked at before a verdict, so that one hole does not hide another.
fn every_way(layer: &str, catcher: impl Fn(&str) -> &'static str) -> Result<()> {
    let setup = Setup::new(&format!("layer = \"{layer}\""))?;
    let daemon = setup.start()?;
    ensure!(setup.status()?.enforcement.layer == layer, "{:?}", setup.status()?.enforcement);
    let before = setup.status()?.counters;
    let rows = coverage(&setup, true)?;
    let mut wrong = Vec::new();
    for row in &rows {
        let seen = (row.verdict.as_str(), row.caught.as_slice());
        let right = match seen {
            ("outside", []) => OUTSIDE.contains(&row.way.as_str()),
            ("absent", []) => may_lack(&row.way),
            ("refused" | "dropped", [by]) => by == catcher(&row.way),
            _ => false,
        };
        if !right {
            let Row { way, verdict, caught, why } = row;
            wrong.push(format!("{way}: {verdict} by {caught:?} {}", why.as_deref().unwrap_or_default()));
        }
    }
    ensure!(wrong.is_empty(), "{} of {} ways:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    ensure!(rows.len() == enforcer::sys::ways::WAYS.len(), "{} ways", rows.len());
    // Nobody's events, and no trace is left.
    let after = setup.status()?.counters;
    ensure!(after.denied == before.denied && after.packets_refused == before.packets_refused, "{after:?}");
    let events = setup.events()?;
    let others =
        events.iter().filter(|event| connect(event).is_none_or(|connect| !connect.dst_ip.is_unspecified()));
    ensure!(others.count() == 0, "{events:?}");
    ensure!(setup.denied()?.is_empty(), "{:?}", setup.denied()?);
    daemon.stop()
}

/// This machine's own kernel may have been built without.
fn may_lack(way: &str) -> bool {
    super::is_native() && (way.starts_with("sctp") || way.contains("mptcp"))
}

fn coverage(setup: &Setup, complete: bool) -> Result<Vec<Row>> {
    let output = setup.command(&["coverage", "--json"])?;
    let code = output.status.code();
    ensure!(code == Some(if complete { 0 } else { 1 }), "{output:?}");
    serde_json::from_slice(&output.stdout).context("the rows")
}

/// What is tried is let through and refused, whatever becomes of the rest.
fn whatever() -> Result<()> {
    for settings in ["default = \"deny\"", "mode = \"audit\"\nevents = \"none\""] {
        let setup = Setup::new(&format!("layer = \"cgroup\"\n{settings}"))?;
        let daemon = setup.start()?;
        let rows = coverage(&setup, true)?;
        let refused = rows.iter().filter(|row| row.verdict == "refused").count();
        ensure!(refused > 30, "{settings}: {refused} refused");
        daemon.stop()?;
    }
    Ok(())
}

/// What gets through is said to.
fn holes() -> Result<()> {
    let setup = Setup::new("layer = \"cgroup\"\negress = false")?;
    let daemon = setup.start()?;
    let rows = coverage(&setup, false)?;
    let through: Vec<&str> =
        rows.iter().filter(|row| row.verdict == "through").map(|row| row.way.as_str()).collect();
    let wanted = ["raw", "raw_v6", "raw_connected", "raw_header"];
    ensure!(wanted.iter().all(|way| through.contains(way)), "{rows:?}");
    ensure!(through.iter().all(|way| way.starts_with("raw") || way.starts_with("sctp")), "{through:?}");
    daemon.stop()
}

/// Whether it is refused or not, and by a datagram as well.
fn one_event() -> Result<()> {
    let server = Server::start()?;
    let setup = Setup::new("layer = \"both\"")?;
    setup.write_policy(
        "deny.toml",
        "[[rule]]\nname = \"r\"\naction = \"deny\"\nnetworks = [\"203.0.113.66\"]\n",
    )?;
    let daemon = setup.start()?;
    let connects = setup.status()?.counters.connects;
    for name in ["tcp_v4", "udp_unconnected", "fast_open"] {
        let way = way(name).context("no such way")?;
        refused(name, way.attempt, SocketAddr::new(BAD_V4, server.port()))?;
        (way.attempt)(SocketAddr::new(GOOD_V4, server.port()), name.as_bytes())?;
        server.received(name)?;
    }
    // Each was counted before its call returned.
    let counted = setup.status()?.counters.connects - connects;
    ensure!(counted == 6, "{counted} connects were counted");
    daemon.stop()?;
    let events = setup.events()?;
    let to = |ip| events.iter().filter_map(connect).filter(|event| event.dst_ip == ip).count();
    ensure!(to(BAD_V4) == 3 && to(GOOD_V4) == 3, "{events:?}");
    Ok(())
}

/// Disconnecting is no connect.
fn af_unspec_connect() -> Result<()> {
    let setup = Setup::new("")?;
    let daemon = setup.start()?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(SocketAddr::new(GOOD_V4, 9))?;
    rustix::net::connect_unspec(&socket)?;
    ensure!(socket.peer_addr().is_err(), "the socket is still connected");
    daemon.stop()
}
