//! Every way to the network, towards a denied and an allowed address, by LSM and by cgroup hooks.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::client::{Family, WAYS, Way};
use enforcer_tests::daemon::{Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::server::Server;

use super::{BAD, BAD_V4, BAD_V6, GOOD_V4, GOOD_V6, learn, refused, resolver};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("every_way_is_refused_by_lsm", by_lsm),
        test("every_way_is_refused_by_cgroup_hooks", by_cgroup),
        test("af_unspec_connect_is_left_to_the_kernel", af_unspec_connect),
    ]
}

fn by_lsm() -> Result<()> {
    every_way("layer = \"lsm\"", "lsm")
}

fn by_cgroup() -> Result<()> {
    every_way("layer = \"cgroup\"", "cgroup")
}

/// Each way is tried on both addresses before a verdict, so that one hole does not hide another.
fn every_way(settings: &str, layer: &str) -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = Setup::new(settings)?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    ensure!(setup.status()?.enforcement.layer == layer, "{:?}", setup.status()?.enforcement);
    learn(&setup, BAD, BAD_V4)?;
    learn(&setup, BAD, BAD_V6.parse()?)?;

    let mut holes = Vec::new();
    for way in WAYS {
        if let Err(error) = try_way(way, &server) {
            holes.push(format!("{}: {error:#}", way.name));
        }
    }
    // Whatever was sent before this has arrived, if it was going to.
    WAYS[0].attempt_all(&server)?;
    if server.has("must-not-arrive") {
        holes.push("data for a denied address arrived".into());
    }
    if !holes.is_empty() {
        bail!("{} of {} ways:\n{}\n{}", holes.len(), WAYS.len(), holes.join("\n"), setup.log());
    }
    daemon.stop()
}

trait AttemptAll {
    fn attempt_all(&self, server: &Server) -> Result<()>;
}

impl AttemptAll for Way {
    fn attempt_all(&self, server: &Server) -> Result<()> {
        (self.attempt)(SocketAddr::new(GOOD_V4, server.port()), b"last-of-all")?;
        server.received("last-of-all")
    }
}

fn try_way(way: &Way, server: &Server) -> Result<()> {
    let (bad, good): (IpAddr, IpAddr) = match way.family {
        Family::V4 => (BAD_V4, GOOD_V4),
        Family::V6 => (BAD_V6.parse()?, GOOD_V6.parse()?),
    };
    refused(way.name, way.attempt, SocketAddr::new(bad, server.port()))?;
    let token = format!("token-{}", way.name);
    (way.attempt)(SocketAddr::new(good, server.port()), token.as_bytes()).context("the allowed address")?;
    server.received(&token)
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
