//! `default = "deny"` and `mode = "audit"`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::VerdictName;
use enforcer_tests::daemon::{SOON, Setup};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::network::{HOST_V4, RESOLVER_V4, in_far};
use enforcer_tests::resolver::{Resolver, lookup};
use enforcer_tests::wait;

use super::rules::{TCP, UDP, is_refused};
use super::{is_native, setup};

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = vec![
        test("default_deny_lets_pass_what_is_allowed_and_what_a_host_needs", allow_list),
        test("default_deny_answers_whoever_comes_in", answers),
        test("default_deny_holds_without_a_daemon_and_without_a_policy", closed),
        test("audit_mode_refuses_nothing_and_says_everything", audit),
    ];
    if !is_native() {
        tests.push(test("defaults_are_the_same_by_cgroup_hooks", by_cgroup_hooks).patient(120));
    }
    tests
}

const DENY: &str = "default = \"deny\"";
const NAME: &str = "good.example";
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 11));
const PATIENCE: Duration = Duration::from_secs(10);

fn by_cgroup_hooks() -> Result<()> {
    let setup = |settings: &str| Setup::new(&format!("layer = \"cgroup\"\n{settings}"));
    allow_list_of(&setup(DENY)?)?;
    answers_of(&setup(DENY)?)?;
    closed_of(&setup(DENY)?)?;
    audit_of(&setup("mode = \"audit\"\ndefault = \"deny\"")?)
}

fn allow(destination: &str) -> String {
    format!("[[rule]]\nname = \"needed\"\naction = \"allow\"\n{destination}\n")
}

fn by_name() -> String {
    allow(&format!("hosts = [\"{NAME}\"]\nports = [443]"))
}

fn expect(what: &str, to: (IpAddr, u16), protocol: u16, want: bool) -> Result<()> {
    let got = is_refused(to.into(), protocol)?;
    ensure!(
        got == want,
        "{what}: {}:{} by {protocol} was {}refused",
        to.0,
        to.1,
        if got { "" } else { "not " }
    );
    Ok(())
}

fn allow_list() -> Result<()> {
    allow_list_of(&setup(DENY)?)
}

fn allow_list_of(setup: &Setup) -> Result<()> {
    let _resolver = Resolver::start(&[(NAME, ADDRESS)], &[])?;
    setup.write_policy("rules.toml", &by_name())?;
    let daemon = setup.start()?;
    ensure!(setup.status()?.enforcement.default == "deny", "{:?}", setup.status()?.enforcement);
    for protocol in [TCP, UDP] {
        expect("before it is looked up", (ADDRESS, 443), protocol, true)?;
    }
    // Question and answer pass by default; what they lead to is allowed before the answer can be read.
    ensure!(lookup(NAME)? == [ADDRESS], "the name was not resolved");
    for protocol in [TCP, UDP] {
        expect("allowed", (ADDRESS, 443), protocol, false)?;
        expect("another port", (ADDRESS, 444), protocol, true)?;
        expect("another address", (OTHER, 443), protocol, true)?;
        expect("the resolver", (RESOLVER_V4.into(), 53), protocol, false)?;
        expect("the resolver's other ports", (RESOLVER_V4.into(), 443), protocol, true)?;
        expect("loopback", (Ipv4Addr::LOCALHOST.into(), 9), protocol, false)?;
        expect("unspecified", (Ipv4Addr::UNSPECIFIED.into(), 9), protocol, false)?;
    }
    expect("a lease", (Ipv4Addr::BROADCAST.into(), 68), UDP, true)?;
    let event = setup.event("the default's refusal", |event| event.dst_ip == OTHER)?;
    ensure!(event.rule.as_deref() == Some("default") && event.verdict == VerdictName::Deny, "{event:?}");
    daemon.stop()
}

fn answers() -> Result<()> {
    answers_of(&setup(DENY)?)
}

/// Whoever is on the other side is under the same kernel, so it needs a rule to come in.
fn answers_of(setup: &Setup) -> Result<()> {
    setup.write_policy("rules.toml", &allow(&format!("networks = [\"{HOST_V4}\"]")))?;
    let tcp = TcpListener::bind((HOST_V4, 0))?;
    let (udp, silent) = (UdpSocket::bind((HOST_V4, 0))?, UdpSocket::bind((HOST_V4, 0))?);
    for socket in [&udp, &silent] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let daemon = setup.start()?;

    let server = tcp.local_addr()?;
    std::thread::scope(|scope| -> Result<()> {
        let client = scope.spawn(move || {
            in_far(move || -> Result<String> {
                let mut stream = TcpStream::connect(server).context("from the far side")?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(b"question")?;
                let mut answer = [0; 6];
                stream.read_exact(&mut answer)?;
                Ok(String::from_utf8_lossy(&answer).into_owned())
            })
        });
        let (mut stream, _) = tcp.accept()?;
        stream.read_exact(&mut [0; 8])?;
        stream.write_all(b"answer")?;
        let answer = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        ensure!(answer? == "answer", "another answer");
        Ok(())
    })?;

    let server = udp.local_addr()?;
    let client = in_far(|| UdpSocket::bind((RESOLVER_V4, 0)))??;
    client.set_read_timeout(Some(PATIENCE))?;
    let to = client.local_addr()?;
    let refused = |socket: &UdpSocket, to: SocketAddr| match socket.send_to(b"answer", to) {
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
        Err(error) => Err(error),
    };
    ensure!(refused(&udp, to)?, "sent before anything was received");
    client.send_to(b"question", server)?;
    let mut buffer = [0; 8];
    let (_, peer) = udp.recv_from(&mut buffer)?;
    ensure!(peer == to, "{peer}");
    ensure!(!refused(&udp, peer)?, "the answer was refused");
    ensure!(client.recv(&mut buffer)? == 6, "another answer");
    ensure!(refused(&silent, peer)?, "another socket received nothing");
    let elsewhere = SocketAddr::new(peer.ip(), peer.port() ^ 1);
    ensure!(refused(&udp, elsewhere)?, "another port of the same peer");
    daemon.stop()
}

fn closed() -> Result<()> {
    closed_of(&setup(DENY)?)
}

fn closed_of(setup: &Setup) -> Result<()> {
    let _resolver = Resolver::start(&[(NAME, ADDRESS)], &[])?;
    setup.write_policy("rules.toml", "[[rule]\n")?;
    let daemon = setup.spawn()?;
    wait::until("the error", PATIENCE, || Ok(setup.status().ok().and_then(|status| status.policy.error)))?;
    expect("without a policy", (ADDRESS, 443), UDP, true)?;
    expect("loopback without a policy", (Ipv4Addr::LOCALHOST.into(), 9), UDP, false)?;
    ensure!(lookup(NAME)? == [ADDRESS], "no DNS without a policy");
    setup.write_policy("rules.toml", &by_name())?;
    wait::until("the mended policy", SOON, || Ok(setup.status()?.policy.error.is_none().then_some(())))?;
    lookup(NAME)?;
    expect("allowed", (ADDRESS, 443), UDP, false)?;
    daemon.kill()?;
    expect("allowed, the daemon being dead", (ADDRESS, 443), UDP, false)?;
    expect("not allowed, the daemon being dead", (OTHER, 443), UDP, true)?;
    ensure!(lookup(NAME)? == [ADDRESS], "no DNS without a daemon");
    let daemon = setup.start()?;
    expect("allowed after a restart", (ADDRESS, 443), UDP, false)?;
    expect("not allowed after a restart", (OTHER, 443), UDP, true)?;
    daemon.stop()?;
    // The kernel detaches a program some time after its last link has gone.
    wait::until("the programs to go", SOON, || Ok(expect("after the stop", (OTHER, 443), UDP, false).ok()))
}

fn audit() -> Result<()> {
    audit_of(&setup("mode = \"audit\"\ndefault = \"deny\"")?)
}

fn audit_of(setup: &Setup) -> Result<()> {
    let _resolver = Resolver::start(&[(NAME, ADDRESS)], &[])?;
    let deny =
        format!("[[rule]]\nname = \"no-good\"\naction = \"deny\"\nhosts = [\"{NAME}\"]\nports = [443]\n");
    setup.write_policy("rules.toml", &deny)?;
    let daemon = setup.start()?;
    lookup(NAME)?;
    for port in [443, 444] {
        expect("in audit mode", (ADDRESS, port), UDP, false)?;
    }
    for (port, rule) in [(443, "no-good"), (444, "default")] {
        let event = setup
            .event("what would be refused", |event| event.dst_ip == ADDRESS && event.dst_port == port)?;
        ensure!(event.verdict == VerdictName::Audit && event.rule.as_deref() == Some(rule), "{event:?}");
    }
    let status = setup.status()?;
    ensure!(status.enforcement.mode == "audit", "{:?}", status.enforcement);
    ensure!(status.counters.denied == 0 && status.counters.audited >= 2, "{:?}", status.counters);
    ensure!(
        status.warnings.iter().any(|warning| warning.contains("NOTHING IS REFUSED")),
        "{:?}",
        status.warnings
    );
    let screen = setup.command(&["status"])?;
    let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
    ensure!(screen.starts_with("AUDIT MODE"), "{screen}");
    daemon.stop()
}
