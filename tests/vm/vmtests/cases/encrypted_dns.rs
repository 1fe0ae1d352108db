//! What a program looks up through an encrypted channel, no rule about hosts sees: `doh = "deny"`.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::daemon::SOON;
use enforcer_tests::harness::{Test, test};
use enforcer_tests::network::{HOST_V4, RESOLVER_V4, RESOLVER_V6};
use enforcer_tests::resolver::Resolver;
use enforcer_tests::server::Server;
use enforcer_tests::servers::doh;
use enforcer_tests::wait;

use super::rules::{TCP, UDP};
use super::{GOOD_V4, GOOD_V6, setup};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("encrypted_dns_is_denied_and_its_exception_is_not", resolvers).patient(120),
        test("port_853_is_denied_but_to_this_hosts_resolvers", port),
    ]
}

/// A name of the shipped list, and where it leads to here.
const LISTED: &str = "dns.quad9.net";
const LISTED_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
/// Only that server knows it.
const HIDDEN: &str = "hidden.example";
const DENY: &str = "doh = \"deny\"";
const RULE: &str = "encrypted-dns-resolvers";

/// A program that asks a resolver of its own: it gets around a rule, then it does not, then an exception lets it.
fn resolvers() -> Result<()> {
    let _plain = Resolver::start(&[(LISTED, LISTED_V4.into())], &[])?;
    let _encrypted = doh(LISTED_V4, HIDDEN, GOOD_V4)?;
    let web = Server::start()?;
    let get = || curl(web.port());
    let policy = format!("[[rule]]\nname = \"hidden\"\naction = \"deny\"\nhosts = [\"{HIDDEN}\"]\n");

    let open = setup("")?;
    open.write_policy("hidden.toml", &policy)?;
    let daemon = open.start()?;
    wait::until("the encrypted resolver to answer", Duration::from_secs(30), || {
        let output = get()?;
        ensure!(output.stdout == b"ok\n", "{output:?}");
        Ok(Some(()))
    })?;
    let blind = open.event("the connect that nobody saw the name of", |it| it.dst_port == web.port())?;
    ensure!(blind.dst_ip == GOOD_V4 && blind.no_dns, "{blind:?}");
    // Those to the resolver over HTTPS have its name. (It runs here, too, and has addresses of its own to go to.)
    let counters = open.status()?.counters;
    ensure!((1..counters.elsewhere).contains(&counters.without_name), "{counters:?}");
    let status = text(&open.command(&["status"])?)?;
    ensure!(status.contains("\nblind     "), "status: {status}");
    daemon.stop()?;

    let closed = setup(DENY)?;
    closed.write_policy("hidden.toml", &policy)?;
    let daemon = closed.start()?;
    let output = get()?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    let event = closed.event("the encrypted resolver", |it| it.dst_ip == LISTED_V4)?;
    ensure!(event.rule.as_deref() == Some(RULE) && event.dst_port == 443, "{event:?}");
    ensure!(event.results.iter().any(|name| name == LISTED), "{event:?}");
    let denied = closed.denied()?;
    ensure!(
        denied.iter().any(|it| it.ip == Some(LISTED_V4.into()) && it.rule == RULE),
        "not told as denied: {denied:?}"
    );
    for (what, about) in [(LISTED, "built-in/encrypted-dns.toml:"), ("1.1.1.1", "encrypted-dns-port")] {
        let said = text(&closed.command(&["explain", what])?)?;
        ensure!(said.contains(RULE) && said.contains(about), "explain {what}: {said}");
    }
    let checked = text(&closed.command(&["check"])?)?;
    ensure!(checked.contains("1 file, 3 rules") && !checked.contains("warning"), "check: {checked}");
    let status = text(&closed.command(&["status"])?)?;
    ensure!(status.contains("and built-in/encrypted-dns.toml, loaded"), "status: {status}");

    let exception =
        format!("[[rule]]\nname = \"quad9\"\naction = \"allow\"\nhosts = [\"{LISTED}\"]\nports = [443]\n");
    closed.write_policy("exception.toml", &exception)?;
    wait::until("the exception to let it through", SOON, || {
        let output = get()?;
        Ok((output.stdout == b"ok\n").then_some(()))
    })?;
    daemon.stop()
}

fn curl(port: u16) -> Result<Output> {
    let (resolver, url) = (format!("https://{LISTED}/dns-query"), format!("http://{HIDDEN}:{port}/"));
    let arguments = ["-sS", "-4", "--max-time", "10", "--doh-insecure", "--doh-url", &resolver, &url];
    Command::new("curl").args(arguments).output().context("curl")
}

fn text(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout.clone())?)
}

/// DNS over TLS and over QUIC have a port of their own, whoever answers there; the host's resolvers may be asked on it.
fn port() -> Result<()> {
    let setup = setup("doh = \"deny\"\nnever_deny = [\"198.51.100.0/28\"]")?;
    let daemon = setup.start()?;
    let v6: IpAddr = GOOD_V6.parse()?;
    let listed: IpAddr = Ipv4Addr::new(9, 9, 9, 9).into();
    let never: IpAddr = Ipv4Addr::new(198, 51, 100, 5).into();
    let rows = [
        (GOOD_V4, 853, true),
        (v6, 853, true),
        (GOOD_V4, 854, false),
        (RESOLVER_V4.into(), 853, false),
        (RESOLVER_V6.into(), 853, true),
        (HOST_V4.into(), 853, false),
        (Ipv4Addr::LOCALHOST.into(), 853, false),
        (never, 853, false),
        // Plain DNS is seen.
        (listed, 443, true),
        (listed, 53, false),
    ];
    for (address, port, want) in rows {
        for protocol in [TCP, UDP] {
            let refused = is_refused(SocketAddr::new(address, port), protocol)?;
            ensure!(refused == want, "{address} port {port} by {protocol}: refused: {refused}");
        }
    }
    // A resolver that comes while the daemon runs.
    let new = Ipv4Addr::new(203, 0, 113, 53);
    let to = SocketAddr::new(new.into(), 853);
    ensure!(is_refused(to, UDP)?, "{new} is no resolver yet");
    let before = fs::read_to_string("/etc/resolv.conf")?;
    fs::write("/etc/resolv.conf", format!("{before}nameserver {new}\n"))?;
    let spared =
        wait::until("the new resolver to be spared", SOON, || Ok((!is_refused(to, UDP)?).then_some(())));
    fs::write("/etc/resolv.conf", before)?;
    spared?;
    wait::until("it to be denied again", SOON, || Ok(is_refused(to, UDP)?.then_some(())))?;
    daemon.stop()
}

/// Whether it ended with EPERM; no route to it is as good as an answer.
fn is_refused(to: SocketAddr, protocol: u16) -> Result<bool> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let tried = if protocol == TCP {
        TcpStream::connect_timeout(&to, Duration::from_secs(5)).map(drop)
    } else {
        UdpSocket::bind(any)?.connect(to)
    };
    match tried {
        Ok(()) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
        Err(error)
            if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NetworkUnreachable) =>
        {
            Ok(false)
        }
        Err(error) => bail!("connecting to {to}: {error}"),
    }
}
