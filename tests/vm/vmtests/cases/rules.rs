//! Rules with conditions: what the kernel decides, held against what the policy reads.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::daemon::{SOON, Setup, replace_file};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::{Resolver, lookup};
use enforcer_tests::wait;
use rustix::process::Signal;

use super::{is_native, setup};

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = vec![
        test("conditional_rules_decide_as_they_read", truth_table).patient(300),
        test("conditional_rules_outlive_their_daemon", outlive),
        test("conditional_rules_flip_in_one_moment", flips).patient(300),
    ];
    if !is_native() {
        tests.push(
            test("conditional_rules_decide_the_same_by_cgroup_hooks", truth_table_by_cgroup).patient(300),
        );
    }
    tests
}

const ACTIONS: [&str; 3] = ["deny", "allow", "audit"];
pub(crate) const TCP: u16 = 6;
pub(crate) const UDP: u16 = 17;
/// What a rule says beside its destinations, and whether it covers a connect.
type Conditions = (&'static str, fn(u16, u16) -> bool);
const CONDITIONS: [Conditions; 4] = [
    ("", |_, _| true),
    ("ports = [443, \"8000-8010\"]\n", |port, _| port == 443 || (8000..=8010).contains(&port)),
    ("protocols = [\"udp\"]\n", |_, protocol| protocol == UDP),
    ("ports = [444]\nprotocols = [\"tcp\"]\n", |port, protocol| port == 444 && protocol == TCP),
];
const RULES: usize = ACTIONS.len() * CONDITIONS.len();

/// An address that two rules name, by a network or by a host.
fn address(by_name: bool, one: usize, other: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, if by_name { 19 } else { 18 }, one as u8, other as u8 + 1)
}

fn host(one: usize, other: usize) -> String {
    format!("r{one}x{other}.example")
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..RULES).flat_map(|one| (one..RULES).map(move |other| (one, other)))
}

fn policy() -> Result<String> {
    let mut text = String::new();
    for rule in 0..RULES {
        let (action, (conditions, _)) = (ACTIONS[rule % 3], CONDITIONS[rule / 3]);
        let mine = || pairs().filter(|(one, other)| rule == *one || rule == *other);
        let networks: Vec<String> =
            mine().map(|(one, other)| format!("\"{}\"", address(false, one, other))).collect();
        let hosts: Vec<String> = mine().map(|(one, other)| format!("\"{}\"", host(one, other))).collect();
        write!(
            text,
            "[[rule]]\nname = \"r{rule}\"\naction = \"{action}\"\nhosts = [{}]\nnetworks = [{}]\n{conditions}\n",
            hosts.join(", "),
            networks.join(", ")
        )?;
    }
    Ok(text)
}

/// Allow beats deny, whatever else they say.
fn wanted(one: usize, other: usize, port: u16, protocol: u16) -> bool {
    let covers = |action: &str| {
        [one, other].iter().any(|rule| ACTIONS[rule % 3] == action && CONDITIONS[rule / 3].1(port, protocol))
    };
    !covers("allow") && covers("deny")
}

/// Whether a connect is refused with EPERM. Nobody listens, which is no matter.
pub(crate) fn is_refused(to: SocketAddr, protocol: u16) -> Result<bool> {
    let tried = if protocol == TCP {
        TcpStream::connect_timeout(&to, Duration::from_secs(5)).map(drop)
    } else {
        UdpSocket::bind("0.0.0.0:0")?.connect(to)
    };
    match tried {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
        Err(error) => Err(error).with_context(|| format!("connecting to {to}")),
    }
}

fn truth_table() -> Result<()> {
    truth_table_by(&setup("")?)
}

fn truth_table_by_cgroup() -> Result<()> {
    truth_table_by(&Setup::new("layer = \"cgroup\"")?)
}

fn truth_table_by(setup: &Setup) -> Result<()> {
    let records: Vec<(String, IpAddr)> =
        pairs().map(|(one, other)| (host(one, other), address(true, one, other).into())).collect();
    let records: Vec<(&str, IpAddr)> = records.iter().map(|(name, addr)| (name.as_str(), *addr)).collect();
    let _resolver = Resolver::start(&records, &[])?;
    setup.write_policy("rules.toml", &policy()?)?;
    let daemon = setup.start()?;
    for (one, other) in pairs() {
        lookup(&host(one, other))?;
    }
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (one, other) in pairs() {
        for by_name in [false, true] {
            for (port, protocol) in [443, 444, 8005].into_iter().flat_map(|port| [(port, TCP), (port, UDP)]) {
                let to = SocketAddr::new(address(by_name, one, other).into(), port);
                let want = wanted(one, other, port, protocol);
                tried += 1;
                if is_refused(to, protocol)? != want {
                    wrong.push(format!("r{one} and r{other}: {to} by {protocol} should be refused: {want}"));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{} of {tried} verdicts are wrong:\n{}", wrong.len(), wrong.join("\n"));
    println!("measured: {tried} verdicts");
    daemon.stop()
}

const NAME: &str = "bad.example";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

fn on_ports(name: &str, action: &str, ports: &str) -> String {
    format!("[[rule]]\nname = \"{name}\"\naction = \"{action}\"\nhosts = [\"{NAME}\"]\nports = [{ports}]\n")
}

fn refused_on(ports: [u16; 3]) -> Result<[bool; 3]> {
    let mut refused = [false; 3];
    for (port, refused) in ports.into_iter().zip(&mut refused) {
        *refused = is_refused(SocketAddr::new(ADDRESS.into(), port), UDP)?;
    }
    Ok(refused)
}

/// Killed, decided without a daemon, adopted by the next: with the same rules, and with others on the same seats.
fn outlive() -> Result<()> {
    let _resolver = Resolver::start(&[(NAME, ADDRESS.into())], &[])?;
    let setup = setup("")?;
    setup.write_policy("rules.toml", &on_ports("one", "deny", "443"))?;
    let daemon = setup.start()?;
    lookup(NAME)?;
    let is = |want: [bool; 3]| -> Result<()> {
        let got = refused_on([443, 444, 445])?;
        ensure!(got == want, "refused on 443, 444, 445: {got:?}, not {want:?}");
        Ok(())
    };
    is([true, false, false])?;
    daemon.kill()?;
    is([true, false, false])?;
    lookup(NAME)?;
    is([true, false, false])?;

    // The same rule has its seat; another one stands before it in the file.
    setup.write_policy("rules.toml", &(on_ports("two", "deny", "445") + &on_ports("one", "deny", "443")))?;
    let daemon = setup.start()?;
    lookup(NAME)?;
    is([true, false, true])?;
    daemon.kill()?;
    is([true, false, true])?;

    // Who sat on the seats is gone: the entries must not speak for who sits there now.
    setup.write_policy("rules.toml", &on_ports("three", "deny", "444"))?;
    let daemon = setup.start()?;
    lookup(NAME)?;
    is([false, true, false])?;
    setup.write_policy(
        "rules.toml",
        &on_ports("three", "audit", "443-445").replace("443-445", "\"443-445\""),
    )?;
    wait::until("an audit rule", SOON, || Ok((refused_on([443, 444, 445])? == [false; 3]).then_some(())))?;
    daemon.signal(Signal::TERM)
}

/// What both versions refuse never passes, what both let pass is never refused, while rules change under a client
/// that does nothing but connect.
fn flips() -> Result<()> {
    let flips = if is_native() { 1_000 } else { 150 };
    let _resolver = Resolver::start(&[(NAME, ADDRESS.into())], &[])?;
    let setup = setup("events = \"none\"")?;
    let network = |name: &str, action: &str, rest: &str| {
        format!(
            "[[rule]]\nname = \"{name}\"\naction = \"{action}\"\nnetworks = [\"203.0.113.0/24\"]\n{rest}\n"
        )
    };
    // 443 is refused by another rule each time, once by a conditional one and once by one without conditions; 444 is
    // refused by a host rule and excepted by a network rule that come and go together.
    let versions = [
        on_ports("one", "deny", "443, 445"),
        on_ports("two", "deny", "\"443-444\", 446")
            + &network("not-444", "allow", "ports = [444]\nprotocols = [\"udp\"]"),
        on_ports("one", "deny", "443, 446"),
        network("all", "deny", "") + &network("not-444", "allow", "ports = [444]"),
    ];
    setup.write_policy("rules.toml", &versions[0])?;
    let _daemon = setup.start()?;
    lookup(NAME)?;
    let to = |port| SocketAddr::new(ADDRESS.into(), port);
    let (stop, begun) = (AtomicBool::new(false), AtomicBool::new(false));
    let client = || -> Result<u64> {
        let mut turns = 0;
        while !stop.load(Ordering::Relaxed) {
            ensure!(is_refused(to(443), UDP)?, "443 passed after {turns} turns");
            ensure!(!is_refused(to(444), UDP)?, "444 was refused after {turns} turns");
            turns += 1;
            begun.store(true, Ordering::Relaxed);
        }
        Ok(turns)
    };
    std::thread::scope(|scope| {
        let client = scope.spawn(client);
        let flipping = (|| -> Result<()> {
            for flip in (1..=flips).take_while(|_| !client.is_finished()) {
                replace_file(&setup.policy("rules.toml"), &versions[flip as usize % versions.len()])?;
                if flip % 10 == 0 {
                    lookup(NAME)?;
                }
                let reload = setup.command(&["reload"])?;
                ensure!(reload.status.success(), "enforcer reload: {reload:?}");
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let turns = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
        let turns = turns.with_context(|| setup.log())?;
        flipping?;
        ensure!(begun.load(Ordering::Relaxed) && turns > flips, "the client made {turns} turns only");
        println!("measured: {} loads under {turns} connects to each port", setup.status()?.policy.loads);
        Ok(())
    })
}
