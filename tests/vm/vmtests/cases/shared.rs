//! An address of a denied name that other names use as well (a content delivery network): who wants one of these is told.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use enforcer_tests::daemon::deny;
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::{Resolver, lookup};
use enforcer_tests::server::Server;

use super::{BAD, GOOD, learn, setup};

pub(crate) fn tests() -> Vec<Test> {
    vec![test("a_refused_address_tells_what_else_it_serves", tells)]
}

const SHARED: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 66));
/// Another way to the same address.
const ALIAS: &str = "www.good.example";

fn tells() -> Result<()> {
    let cname = format!("--cname={ALIAS},{GOOD}");
    let _resolver = Resolver::start(&[(BAD, SHARED), (GOOD, SHARED)], &[&cname])?;
    let web = Server::start()?;
    let to = SocketAddr::new(SHARED, web.port());
    let setup = setup("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;

    // Nothing else is known to lead there.
    learn(&setup, BAD, SHARED)?;
    ensure!(is_refused(to)?, "{to} was not refused");
    let alone = setup.event("the connect", |it| it.dst_ip == SHARED)?;
    ensure!(alone.also_serves.is_empty() && alone.results == [BAD], "{alone:?}");

    lookup(GOOD)?;
    lookup(ALIAS)?;
    ensure!(is_refused(to)?, "`shared` is \"deny\" if nothing is said");
    let event =
        setup.event("the second connect", |it| it.dst_ip == SHARED && it.sequence > alone.sequence)?;
    let mut others = event.also_serves.clone();
    others.sort();
    ensure!(others == [GOOD, ALIAS], "{event:?}");
    let denied = setup.denied()?;
    let [one] = denied.as_slice() else { bail!("{denied:?}") };
    ensure!(one.also_serves.len() == 2, "{one:?}");
    let explained = setup.command(&["explain", &SHARED.to_string()])?;
    let said = String::from_utf8_lossy(&explained.stdout);
    ensure!(said.contains("no rule refuses") && said.contains(ALIAS), "explain: {said}");
    let report =
        setup.command(&["report", "--json", "--from", &setup.events_file().display().to_string()])?;
    let report: serde_json::Value = serde_json::from_slice(&report.stdout)?;
    let told = &report["shared"][0]["alsoServes"];
    ensure!(told.as_array().is_some_and(|names| names.len() == 2), "{report}");
    daemon.stop()
}

/// Whether it ended with EPERM; else it was let through.
fn is_refused(to: SocketAddr) -> Result<bool> {
    match TcpStream::connect_timeout(&to, Duration::from_secs(5)) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(true),
        Err(error) => bail!("connecting to {to}: {error}"),
    }
}
