//! Programs that people use.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Result, ensure};
use enforcer_tests::daemon::{Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::{Resolver, lookup};
use enforcer_tests::server::Server;
use enforcer_tests::wait;

use super::{BAD, BAD_V4, GOOD, learn, resolver};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("curl_reaches_the_allowed_name_only", curl),
        test("python_gets_permission_error", python),
        test("cname_leads_to_a_denied_name", cname),
        test("glob_and_suffix_deny_what_they_name", globs),
        test("exception_beats_denial", exception),
        test("audit_lets_through_and_reports", audit),
        test("network_rule_denies_without_dns", network_rule),
        test("an_answer_cannot_deny_what_is_never_denied", never_denied),
        test("answers_over_tcp_count", tcp_answers),
    ]
}

fn curl() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let getent = Command::new("getent").args(["ahostsv4", BAD]).output()?;
    ensure!(getent.status.success(), "{getent:?}");
    setup.until_denied(BAD_V4, true)?;
    let get = |name: &str| {
        let url = format!("http://{name}:{}/", server.port());
        Command::new("curl").args(["-sS", "-4", "-v", "--max-time", "10", &url]).output()
    };
    let good = get(GOOD)?;
    ensure!(good.status.success() && good.stdout == b"ok\n", "{good:?}");
    let bad = get(BAD)?;
    ensure!(bad.status.code() == Some(7), "curl's exit code for a refused connect is 7: {bad:?}");
    let http2 = |name: &str| {
        let url = format!("http://{name}:{}/", server.port());
        Command::new("curl").args(["-sS", "-4", "--http2-prior-knowledge", "--max-time", "10", &url]).output()
    };
    let bad = http2(BAD)?;
    ensure!(bad.status.code() == Some(7), "{bad:?}");
    // The server knows nothing of it, but it is reached.
    http2(GOOD)?;
    server.received("PRI * HTTP/2.0")?;
    let event =
        setup.event("curl's connect", |event| event.dst_ip == BAD_V4 && event.process.comm == "curl")?;
    ensure!(event.results == [BAD] && event.protocol == "tcp", "{event:?}");
    ensure!(event.rule.as_deref() == Some("no-bad.example"), "{event:?}");
    Ok(())
}

fn python() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    let script =
        format!("import socket; socket.create_connection(('{BAD_V4}', {}), timeout=5)", server.port());
    let output = Command::new("python3").args(["-c", &script]).output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(words.contains("PermissionError: [Errno 1]"), "{words}");
    let event = setup.event("python's connect", |event| event.process.comm == "python3")?;
    ensure!(event.process.executable.as_deref().is_some_and(|path| path.contains("/python3")), "{event:?}");
    Ok(())
}

fn cname() -> Result<()> {
    let _resolver = Resolver::start(&[(BAD, BAD_V4)], &["--cname=innocent.example,bad.example"])?;
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    learn(&setup, "innocent.example", BAD_V4)?;
    let denied = setup.denied()?;
    ensure!(denied[0].names == ["innocent.example", BAD], "{denied:?}");
    Ok(())
}

fn globs() -> Result<()> {
    let names = ["apex.example", "sub.apex.example", "ads-7.example", "radish.example"];
    let records: Vec<_> =
        names.iter().enumerate().map(|(n, name)| (*name, [203, 0, 113, 20 + n as u8].into())).collect();
    let _resolver = Resolver::start(&records, &[])?;
    let setup = Setup::new("")?;
    let policy = "[[rule]]\nname = \"r\"\naction = \"deny\"\nhosts = [\".apex.example\", \"ads-[0-9].*\"]\n";
    setup.write_policy("deny.toml", policy)?;
    let _daemon = setup.start()?;
    for name in names {
        lookup(name)?;
    }
    setup.until_denied(records[2].1, true)?;
    setup.until_denied(records[0].1, true)?;
    setup.until_denied(records[1].1, true)?;
    // The answer for it was the last: had it matched, it would be there with the others.
    wait::until("all answers to be heard", enforcer_tests::daemon::SOON, || {
        Ok((setup.status()?.dns.bindings >= names.len()).then_some(()))
    })?;
    ensure!(!setup.is_denied(records[3].1)?, "radish.example is denied");
    Ok(())
}

fn exception() -> Result<()> {
    let server = Server::start()?;
    let ok = "203.0.113.30".parse()?;
    let _resolver = Resolver::start(&[("x.bad.example", BAD_V4), ("ok.bad.example", ok)], &[])?;
    let setup = Setup::new("")?;
    let rules = "[[rule]]\nname = \"all\"\naction = \"deny\"\nhosts = [\".bad.example\"]\n\
                 [[rule]]\nname = \"but\"\naction = \"allow\"\nhosts = [\"ok.bad.example\"]\n";
    setup.write_policy("deny.toml", rules)?;
    let _daemon = setup.start()?;
    lookup("ok.bad.example")?;
    learn(&setup, "x.bad.example", BAD_V4)?;
    let way = enforcer_tests::client::way("tcp_v4").expect("is in the table");
    super::refused("connect", way.attempt, SocketAddr::new(BAD_V4, server.port()))?;
    (way.attempt)(SocketAddr::new(ok, server.port()), b"excepted")?;
    server.received("excepted")?;
    let event = setup.event("the exception", |event| event.dst_ip == ok)?;
    ensure!(event.rule.as_deref() == Some("but"), "{event:?}");
    Ok(())
}

fn audit() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = Setup::new("")?;
    setup.write_policy("audit.toml", &deny(BAD).replace("\"deny\"", "\"audit\""))?;
    let _daemon = setup.start()?;
    lookup(BAD)?;
    wait::until("the audit entry", enforcer_tests::daemon::SOON, || {
        Ok(setup.denied()?.iter().any(|denied| denied.verdict == "audit").then_some(()))
    })?;
    let way = enforcer_tests::client::way("tcp_v4").expect("is in the table");
    (way.attempt)(SocketAddr::new(BAD_V4, server.port()), b"audited")?;
    server.received("audited")?;
    let event = setup.event("the audited connect", |event| event.dst_ip == BAD_V4)?;
    ensure!(event.verdict == enforcer::engine::record::VerdictName::Audit, "{event:?}");
    Ok(())
}

fn network_rule() -> Result<()> {
    let server = Server::start()?;
    let setup = Setup::new("")?;
    let rules = "[[rule]]\nname = \"net\"\naction = \"deny\"\nnetworks = [\"198.51.100.0/25\", \"2001:db8:5::/48\"]\n\
                 [[rule]]\nname = \"hole\"\naction = \"allow\"\nnetworks = [\"198.51.100.16/28\"]\n";
    setup.write_policy("net.toml", rules)?;
    let _daemon = setup.start()?;
    let rows = [
        ("198.51.100.1", false),
        ("198.51.100.127", false),
        ("198.51.100.128", true),
        ("198.51.100.17", true),
        ("2001:db8:5::1", false),
        ("2001:db8:6::1", true),
        ("64:ff9b::198.51.100.1", false),
    ];
    for (address, reaches) in rows {
        let ip: std::net::IpAddr = address.parse()?;
        let name = if ip.is_ipv4() { "tcp_v4" } else { "tcp_v6" };
        let attempt = enforcer_tests::client::way(name).expect("is in the table").attempt;
        let to = SocketAddr::new(ip, server.port());
        if reaches {
            attempt(to, b"net").map_err(|error| anyhow::anyhow!("{address}: {error}"))?;
        } else {
            super::refused(address, attempt, to)?;
        }
    }
    Ok(())
}

/// The owner of a denied name points it at what the host needs.
fn never_denied() -> Result<()> {
    use enforcer_tests::network::{HOST_V4, HOST_V6, RESOLVER_V4, RESOLVER_V6};
    let protected: Vec<std::net::IpAddr> = vec![
        "127.0.0.1".parse()?,
        "127.8.8.8".parse()?,
        "::1".parse()?,
        "0.0.0.0".parse()?,
        "169.254.169.254".parse()?,
        "fe80::1".parse()?,
        "224.0.0.251".parse()?,
        "ff02::fb".parse()?,
        "192.0.2.200".parse()?,
        HOST_V4.into(),
        HOST_V6.into(),
        RESOLVER_V4.into(),
    ];
    let mut records: Vec<_> = protected.iter().map(|ip| (BAD, *ip)).collect();
    records.push((BAD, BAD_V4));
    let _resolver = Resolver::start(&records, &[])?;
    let setup = Setup::new(&format!("never_deny = [\"192.0.2.128/25\", \"{RESOLVER_V6}\"]"))?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    wait::until("both answers to be heard", enforcer_tests::daemon::SOON, || {
        Ok((setup.status()?.dns.refused_bindings >= protected.len() as u64).then_some(()))
    })?;
    for ip in protected {
        ensure!(!setup.is_denied(ip)?, "{ip} is denied");
    }
    lookup(BAD)?;
    Ok(())
}

/// dnsmasq truncates over UDP what glibc then asks over TCP.
fn tcp_answers() -> Result<()> {
    let addresses: Vec<std::net::IpAddr> = (0..120).map(|n| [198, 18, 0, n].into()).collect();
    let records: Vec<_> = addresses.iter().map(|ip| (BAD, *ip)).collect();
    let _resolver = Resolver::start(&records, &["--edns-packet-max=512"])?;
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let seen = lookup(BAD)?;
    ensure!(seen.len() >= addresses.len(), "the client saw {} of {}", seen.len(), addresses.len());
    wait::until("all of them to be denied", enforcer_tests::daemon::SOON, || {
        let denied: Vec<_> = setup.denied()?.into_iter().filter_map(|denied| denied.ip).collect();
        Ok(addresses.iter().all(|ip| denied.contains(ip)).then_some(()))
    })?;
    ensure!(setup.status()?.dns.truncated > 0, "nothing was truncated: this tests nothing");
    Ok(())
}
