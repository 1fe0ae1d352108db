//! What systemd-resolved answers past DNS: names that it learnt by TLS, or knew before, asked for by nss-resolve. No packet
//! that can be read has them, so they are denied by what it tells itself (io.systemd.Resolve.Monitor).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use anyhow::{Result, bail, ensure};
use enforcer::engine::record::VerdictName;
use enforcer_tests::daemon::{SOON, Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::replaced::Replaced;
use enforcer_tests::resolver::Resolver;
use enforcer_tests::server::Server;
use enforcer_tests::servers::{self, READY};
use enforcer_tests::wait;

use super::{BAD, BAD_V4, BAD_V6, GOOD, GOOD_V4, setup};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("what_resolved_learns_by_tls_is_denied", by_tls),
        test("what_resolved_knew_before_the_start_is_denied_when_asked_again", cached),
        test("flush_caches_has_resolved_ask_again", flushed),
        test("a_feed_that_may_not_be_heard_is_told", forbidden),
        test("with_the_units_capabilities_it_is_heard_by_proxy", by_proxy),
    ]
}

const BY_RESOLVED: &str = "hosts: resolve [!UNAVAIL=return] files\n";
const OTHER: &str = "other.example";
const OTHER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 67));

fn nsswitch() -> Result<Replaced> {
    Replaced::new("/etc/nsswitch.conf", BY_RESOLVED)
}

/// By nss-resolve, which speaks no DNS.
fn ask(name: &str) -> Result<Vec<IpAddr>> {
    let output = Command::new("getent").args(["ahosts", name]).output()?;
    ensure!(output.status.success(), "{name}: {output:?}");
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

fn until_link(setup: &Setup, link: &str) -> Result<()> {
    wait::until(&format!("the feed to be {link}"), SOON, || {
        let seen = setup.status()?.dns.resolved;
        if seen.link == link { Ok(Some(())) } else { bail!("{seen:?}") }
    })
}

fn connect(to: SocketAddr) -> std::io::Result<()> {
    TcpStream::connect(to).map(drop)
}

fn refused(to: SocketAddr) -> Result<()> {
    let error = connect(to).err();
    ensure!(error.as_ref().and_then(std::io::Error::raw_os_error) == Some(libc::EPERM), "{to}: {error:?}");
    Ok(())
}

/// Also after it was restarted.
fn by_tls() -> Result<()> {
    let _upstream =
        servers::dot(&[(BAD, BAD_V4), (BAD, BAD_V6.parse()?), (GOOD, GOOD_V4), (OTHER, OTHER_V4)])?;
    let _nsswitch = nsswitch()?;
    let resolved = servers::resolved("DNSOverTLS=opportunistic\nDNSSEC=no\n")?;
    let web = Server::start()?;
    let at = |ip| SocketAddr::new(ip, web.port());
    let setup = setup("")?;
    setup.write_policy("deny.toml", &(deny(BAD) + &deny(OTHER)))?;
    let daemon = setup.start()?;
    until_link(&setup, "connected")?;
    connect(at(BAD_V4))?;
    let blind = setup.event("a connect before anybody asked", |it| it.dst_ip == BAD_V4)?;
    ensure!(blind.no_dns, "{blind:?}");

    let heard = ask(BAD)?;
    ensure!(heard.contains(&BAD_V4) && heard.contains(&BAD_V6.parse()?), "{heard:?}");
    setup.until_denied(BAD_V4, true)?;
    setup.until_denied(BAD_V6.parse()?, true)?;
    refused(at(BAD_V4))?;
    let event =
        setup.event("what was refused", |it| it.dst_ip == BAD_V4 && it.verdict == VerdictName::Deny)?;
    ensure!(event.results == [BAD] && event.rule.as_deref() == Some("no-bad.example"), "{event:?}");

    // What no rule names has its name in the event nevertheless.
    ask(GOOD)?;
    connect(at(GOOD_V4))?;
    let event = setup.event("what is allowed", |it| it.dst_ip == GOOD_V4)?;
    ensure!(event.results == [GOOD] && !event.no_dns, "{event:?}");

    let dns = setup.status()?.dns;
    ensure!(dns.matched == 0, "an answer could be read: {dns:?}");
    ensure!(dns.late.get("resolved_monitor").is_some_and(|late| (1..=2).contains(late)), "{dns:?}");
    ensure!(dns.resolved.answers >= 2 && dns.resolved.unread == 0 && dns.resolved.lost == 0, "{dns:?}");
    let status = String::from_utf8(setup.command(&["status"])?.stdout)?;
    ensure!(status.contains("\nresolved  connected, "), "{status}");

    drop(resolved);
    until_link(&setup, "absent")?;
    let _resolved = servers::resolved("DNSOverTLS=opportunistic\nDNSSEC=no\n")?;
    until_link(&setup, "connected")?;
    ensure!(setup.status()?.dns.resolved.lost == 1, "{:?}", setup.status()?.dns);
    ask(OTHER)?;
    setup.until_denied(OTHER_V4, true)?;
    refused(at(OTHER_V4))?;
    daemon.stop()
}

fn cached() -> Result<()> {
    let upstream = upstream(BAD_V4)?;
    let _nsswitch = nsswitch()?;
    let _resolved = servers::resolved("DNSSEC=no\n")?;
    ensure!(ask(BAD)?.contains(&BAD_V4), "nobody knows it");
    // Now only its cache does.
    drop(upstream);
    let deaf = setup("resolved_monitor = false")?;
    deaf.write_policy("deny.toml", &deny(BAD))?;
    let daemon = deaf.start()?;
    ask(BAD)?;
    ensure!(deaf.status()?.dns.resolved.link == "off", "{:?}", deaf.status()?.dns);
    ensure!(!deaf.is_denied(BAD_V4)?, "it was not only in the cache");
    daemon.stop()?;

    let web = Server::start()?;
    let setup = setup("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    until_link(&setup, "connected")?;
    ensure!(!setup.is_denied(BAD_V4)?, "denied before anybody asked");
    ask(BAD)?;
    setup.until_denied(BAD_V4, true)?;
    refused(SocketAddr::new(BAD_V4, web.port()))?;
    let event = setup.event("what was refused", |it| it.dst_ip == BAD_V4)?;
    ensure!(event.results == [BAD], "{event:?}");
    daemon.stop()
}

/// With a TTL that outlives the test.
fn upstream(bad: IpAddr) -> Result<Resolver> {
    Resolver::start(&[(BAD, bad), (READY, Ipv4Addr::new(192, 0, 2, 1).into())], &["--local-ttl=300"])
}

fn flushed() -> Result<()> {
    let mut upstream = upstream(BAD_V4)?;
    let _nsswitch = nsswitch()?;
    let _bus = servers::message_bus()?;
    let _resolved = servers::resolved("DNSSEC=no\n")?;
    wait::until("resolved to be on the bus", SOON, || {
        let output = Command::new("resolvectl").arg("dns").output()?;
        if output.status.success() { Ok(Some(())) } else { bail!("{output:?}") }
    })?;
    ensure!(ask(BAD)?.contains(&BAD_V4), "nobody knows it");
    upstream.replace(&[(BAD, OTHER_V4), (READY, Ipv4Addr::new(192, 0, 2, 1).into())])?;
    let heard = ask(BAD)?;
    ensure!(!heard.contains(&OTHER_V4), "it does not come from the cache: {heard:?}");

    // What it knows is forgotten, and so its answer is one that the packet path sees.
    let setup = setup("flush_caches = true\nresolved_monitor = false")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    wait::until("the daemon to have flushed", SOON, || {
        Ok(setup.log().contains("systemd-resolved forgot what it knew before").then_some(()))
    })?;
    let heard = ask(BAD)?;
    ensure!(heard.contains(&OTHER_V4) && !heard.contains(&BAD_V4), "it was not asked again: {heard:?}");
    setup.until_denied(OTHER_V4, true)?;
    let status = setup.status()?;
    ensure!(status.dns.matched > 0, "{:?}", status.dns);
    ensure!(!status.warnings.iter().any(|it| it.contains("flush_caches")), "{:?}", status.warnings);
    daemon.stop()
}

/// The socket belongs to resolved alone: root without CAP_DAC_OVERRIDE may not connect, which is told with the remedy.
fn forbidden() -> Result<()> {
    let _upstream = upstream(BAD_V4)?;
    let _resolved = servers::resolved("DNSSEC=no\n")?;
    let setup = setup("")?;
    let daemon = setup.start_as_the_unit()?;
    until_link(&setup, "failed")?;
    let status = String::from_utf8(setup.command(&["status"])?.stdout)?;
    ensure!(status.contains("\nresolved  NOT heard"), "{status}");
    ensure!(status.contains("systemctl start enforcer-resolved.socket"), "{status}");
    daemon.stop()?;
    ensure!(fs::metadata("/run/systemd/resolve/io.systemd.Resolve.Monitor").is_ok(), "resolved is gone");
    Ok(())
}

/// Whichever of resolved and the proxy goes and comes again.
fn by_proxy() -> Result<()> {
    let upstream = upstream(BAD_V4)?;
    let _nsswitch = nsswitch()?;
    let resolved = servers::resolved("DNSSEC=no\n")?;
    ensure!(ask(BAD)?.contains(&BAD_V4), "nobody knows it");
    let proxy = servers::resolved_proxy()?;
    let web = Server::start()?;
    let setup = setup("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start_as_the_unit()?;
    until_link(&setup, "connected")?;
    // From the cache.
    ask(BAD)?;
    setup.until_denied(BAD_V4, true)?;
    refused(SocketAddr::new(BAD_V4, web.port()))?;
    drop(proxy);
    until_link(&setup, "failed")?;
    let _proxy = servers::resolved_proxy()?;
    until_link(&setup, "connected")?;
    drop(resolved);
    until_link(&setup, "absent")?;
    let _resolved = servers::resolved("DNSSEC=no\n")?;
    until_link(&setup, "connected")?;
    drop(upstream);
    daemon.stop()
}
