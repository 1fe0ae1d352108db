//! One IPv4 host under IPv6 addresses: NAT64 prefixes of the network. The forms that are the same everywhere are ways of
//! `enforcer coverage`.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::{Attempt, way};
use enforcer_tests::daemon::deny;
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::{Resolver, lookup};
use enforcer_tests::server::Server;

use super::{BAD, BAD_V4, GOOD, GOOD_V4, learn, refused, setup};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("behind_an_own_nat64_prefix_is_the_same_host", own_prefixes),
        test("a_nat64_prefix_that_comes_later_opens_nothing", later),
    ]
}

const OWN: &str =
    "nat64_prefixes = [\"2001:db8:64::/96\", \"2001:db8:100::/40\", \"64:ff9b:1::/48\", \"2001:db8:3::/64\"]";
/// 203.0.113.66 behind the first and the second.
const BEHIND: [&str; 2] = ["2001:db8:64::203.0.113.66", "2001:db8:1cb:71:42::"];

fn tcp(to: IpAddr) -> Attempt {
    way(if to.is_ipv4() { "tcp_v4" } else { "tcp_v6" }).expect("is in the table").attempt
}

fn refused_at(to: IpAddr, port: u16) -> Result<()> {
    refused("connect", tcp(to), SocketAddr::new(to, port))
}

fn reached(server: &Server, to: IpAddr, token: &str) -> Result<()> {
    tcp(to)(SocketAddr::new(to, server.port()), token.as_bytes()).with_context(|| to.to_string())?;
    server.received(token)
}

/// As DNS64 has it, whichever of the addresses the answer was about.
fn own_prefixes() -> Result<()> {
    let server = Server::start()?;
    let good_behind: IpAddr = "2001:db8:64::203.0.113.10".parse()?;
    let records =
        [(BAD, BAD_V4), ("six.bad.example", "2001:db8:64::198.51.100.7".parse()?), (GOOD, good_behind)];
    let _resolver = Resolver::start(&records, &[])?;
    let setup = setup(OWN)?;
    setup.write_policy("deny.toml", &deny(&format!(".{BAD}")))?;
    setup.write_policy(
        "net.toml",
        "[[rule]]\nname = \"net\"\naction = \"deny\"\nnetworks = [\"198.18.5.0/24\"]\n",
    )?;
    let daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    learn(&setup, "six.bad.example", "198.51.100.7".parse()?)?;
    lookup(GOOD)?;
    for to in BEHIND.into_iter().chain(["198.51.100.7", "2001:db8:64::198.18.5.1", "2001:db8:1c6:1205:1::"]) {
        refused_at(to.parse()?, server.port()).with_context(|| to.to_owned())?;
    }
    reached(&server, good_behind, "good-behind")?;
    reached(&server, GOOD_V4, "good")?;
    // The event has what the program wrote, and the names of the host.
    let behind: IpAddr = BEHIND[0].parse()?;
    let event = setup.event("the connect behind the prefix", |event| event.dst_ip == behind)?;
    ensure!(event.results == [BAD], "{event:?}");
    let written = "networks = [\"2001:db8:64::198.18.5.0/120\"]";
    setup.write_policy("net.toml", &format!("[[rule]]\nname = \"net\"\naction = \"deny\"\n{written}\n"))?;
    let check = setup.command(&["check"])?;
    ensure!(String::from_utf8_lossy(&check.stderr).contains("write `198.18.5.0/24`"), "{check:?}");
    daemon.stop()
}

/// What a daemon without it had learned is known by its canonical address from the first packet on.
fn later() -> Result<()> {
    let server = Server::start()?;
    let behind: IpAddr = BEHIND[0].parse()?;
    let _resolver = Resolver::start(&[(BAD, behind)], &[])?;
    let without = setup("")?;
    without.write_policy("deny.toml", &deny(BAD))?;
    let daemon = without.start()?;
    learn(&without, BAD, behind)?;
    reached(&server, BAD_V4, "another-host-as-far-as-known")?;
    daemon.kill()?;
    let with = setup(OWN)?;
    with.write_policy("deny.toml", &deny(BAD))?;
    let daemon = with.start()?;
    refused_at(behind, server.port())?;
    refused_at(BAD_V4, server.port())?;
    ensure!(with.is_denied(BAD_V4)? && !with.is_denied(behind)?, "{:?}", with.denied()?);
    daemon.stop()
}
