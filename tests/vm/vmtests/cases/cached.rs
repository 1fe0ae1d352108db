//! What was looked up before the daemon ran: whoever knows an address from then is refused nevertheless.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use enforcer_tests::daemon::{SOON, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::Resolver;
use enforcer_tests::wait;

use super::{BAD, BAD_V4, BAD_V6, GOOD, GOOD_V4, resolver, setup};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("literal_names_are_denied_though_nobody_asks", literals),
        test("literal_names_wait_for_a_resolver", later),
        test("a_cache_that_cannot_be_flushed_is_told", unflushed),
    ]
}

const LITERALS: &str = "resolve_literals = true";

/// At a start, and with a change.
fn literals() -> Result<()> {
    let _resolver = resolver()?;
    let setup = setup(LITERALS)?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    setup.until_denied(BAD_V4, true)?;
    setup.until_denied(BAD_V6.parse()?, true)?;
    ensure!(!setup.is_denied(GOOD_V4)?, "what no rule names was asked for");
    setup.write_policy("more.toml", &deny(GOOD))?;
    setup.until_denied(GOOD_V4, true)?;
    wait::until("all to be answered", SOON, || {
        Ok((setup.status()?.dns.literals_unanswered == 0).then_some(()))
    })?;
    daemon.stop()
}

/// At boot nobody answers yet. When the resolver is another, it is asked at once.
fn later() -> Result<()> {
    let (resolvers, nobody) = (fs::read_to_string("/etc/resolv.conf")?, Ipv4Addr::new(203, 0, 113, 53));
    fs::write("/etc/resolv.conf", format!("nameserver {nobody}\n"))?;
    let setup = setup(LITERALS)?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let waiting = setup.status()?.dns.literals_unanswered;
    let _resolver = Resolver::start(&[(BAD, BAD_V4)], &[])?;
    fs::write("/etc/resolv.conf", resolvers)?;
    ensure!(waiting == 1, "{waiting} names wait");
    setup.until_denied(BAD_V4, true)
}

/// systemd-resolved seems to run, and cannot be talked to.
fn unflushed() -> Result<()> {
    const SOCKET: &str = "/run/systemd/resolve/io.systemd.Resolve";
    fs::create_dir_all("/run/systemd/resolve")?;
    // One that ran here may have left its socket.
    let _ = fs::remove_file(SOCKET);
    fs::write(SOCKET, "")?;
    let setup = setup("flush_caches = true")?;
    let _daemon = setup.start()?;
    let warned = wait::until("the warning", SOON, || {
        let warnings = setup.status()?.warnings;
        Ok(warnings.iter().any(|warning| warning.starts_with("flush_caches = true, but")).then_some(()))
    });
    fs::remove_file(SOCKET)?;
    warned
}
