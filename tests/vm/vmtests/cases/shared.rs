//! An address of a denied name that other names use as well (a content delivery network): who wants one of these is told.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use enforcer::engine::record::VerdictName;
use enforcer_common::limits::SHARED_SECONDS;
use enforcer_tests::daemon::{SOON, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::{Resolver, lookup};
use enforcer_tests::server::Server;
use enforcer_tests::wait;

use super::{BAD, GOOD, learn, setup};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("a_refused_address_tells_what_else_it_serves", tells),
        test("a_shared_address_passes_where_a_rule_says_so_and_while_a_name_leads_there", allow).patient(120),
    ]
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

fn allow() -> Result<()> {
    let _resolver = Resolver::start(&[(BAD, SHARED), (GOOD, SHARED)], &[])?;
    let web = Server::start()?;
    let to = SocketAddr::new(SHARED, web.port());
    let setup = setup("")?;
    let lets_pass = |name: &str| format!("{}shared = \"allow\"\n", deny(name));
    setup.write_policy("deny.toml", &lets_pass(BAD))?;
    let daemon = setup.start()?;

    learn(&setup, BAD, SHARED)?;
    ensure!(is_refused(to)?, "nobody else is known to use {to}");
    let alone = setup.event("the connect", |it| it.dst_ip == SHARED && it.verdict == VerdictName::Deny)?;
    ensure!(!alone.shared && alone.also_serves.is_empty(), "{alone:?}");

    // From the moment on at which who asked can read the answer.
    lookup(GOOD)?;
    ensure!(!is_refused(to)?, "{to} was refused to who asked for {GOOD}");
    let event = setup.event("what was let through", |it| it.dst_port == to.port() && it.shared)?;
    ensure!(event.verdict == VerdictName::Allow && event.rule == alone.rule, "{event:?}");
    ensure!(event.also_serves == [GOOD], "{event:?}");
    let status = setup.status()?;
    ensure!(status.map.shared == 1 && status.counters.shared_passed > 0, "{status:?}");
    let explained = setup.command(&["explain", BAD])?;
    let said = String::from_utf8_lossy(&explained.stdout);
    ensure!(said.contains("unshared addresses") && said.contains("shared: rules"), "explain: {said}");

    // The answer said 0 seconds. Nobody asks for the good name again.
    let over = || Ok(is_refused(to)?.then_some(()));
    wait::until("the answer to run out", Duration::from_secs(u64::from(SHARED_SECONDS) + 5), over)?;
    ensure!(setup.status()?.map.shared == 0, "told as let through");

    // Nobody need be alive for it. Who starts after that knows no other name, until somebody asks.
    daemon.kill()?;
    ensure!(is_refused(to)?, "without a daemon all pass");
    lookup(GOOD)?;
    ensure!(!is_refused(to)?, "without a daemon nobody passes");
    let daemon = setup.start()?;
    ensure!(is_refused(to)?, "let through for what the daemon before it heard");
    lookup(GOOD)?;
    ensure!(!is_refused(to)?, "refused for ever");

    // A name that a new rule refuses makes nothing shared, at once.
    setup.write_policy("more.toml", &lets_pass(GOOD))?;
    wait::until("the new rule to be in force", SOON, || {
        Ok((setup.status()?.policy.rules == 2).then_some(()))
    })?;
    lookup(GOOD)?;
    ensure!(is_refused(to)?, "two refused names let each other pass");
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
