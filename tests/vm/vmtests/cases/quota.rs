//! Whoever owns a denied name chooses its addresses, but not how many: he fills no map, and takes nothing from others.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::{Event, RefusedBinding, RefusedReason};
use enforcer_tests::daemon::{SOON, Setup};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::network::RESOLVER_V4;
use enforcer_tests::resolver::{Resolver, query};
use enforcer_tests::wait;

pub(crate) fn tests() -> Vec<Test> {
    vec![test("a_denied_name_brings_no_more_addresses_than_its_quota", flood).patient(240)]
}

const POLICY: &str =
    "[[rule]]\nname = \"r\"\naction = \"deny\"\nhosts = [\".flood.example\", \".other.example\"]\n";
const PER_NAME: u8 = 8;
const PER_RULE: u8 = 12;
const ANSWERS: Duration = Duration::from_secs(20);
/// So long nothing comes that the resolver sent at once.
const NOTHING: Duration = Duration::from_millis(400);

fn flood() -> Result<()> {
    let names: Vec<(String, IpAddr)> = (0..20u8)
        .flat_map(|n| [("flood", n), ("other", 100 + n)])
        .map(|(domain, n)| (format!("n{n}.{domain}.example"), Ipv4Addr::new(198, 18, 0, n).into()))
        .chain([("good.example".to_owned(), Ipv4Addr::new(203, 0, 113, 10).into())])
        .collect();
    let records: Vec<(&str, IpAddr)> = names.iter().map(|(name, addr)| (name.as_str(), *addr)).collect();
    let _resolver = Resolver::start(&records, &[])?;
    let settings = format!("addresses_per_name = {PER_NAME}\naddresses_per_rule = {PER_RULE}");
    let setup = super::setup(&settings)?;
    setup.write_policy("deny.toml", POLICY)?;
    let daemon = setup.start()?;
    let flood = |n: u8| format!("n{n}.flood.example");
    let other = |n: u8| format!("n{}.other.example", 100 + n);
    for n in 0..PER_NAME {
        ensure!(is_told(&flood(n), ANSWERS)?, "{n} was withheld");
    }
    for n in PER_NAME..20 {
        ensure!(!is_told(&flood(n), NOTHING)?, "{n} was delivered");
    }
    // What is known is told again; so is another name of the rule, until the rule has brought enough.
    ensure!(is_told(&flood(3), ANSWERS)?, "a known address was withheld");
    for n in 0..PER_RULE - PER_NAME {
        ensure!(is_told(&other(n), ANSWERS)?, "the other name's {n} was withheld");
    }
    ensure!(!is_told(&other(19), NOTHING)?, "the rule has no end");
    ensure!(is_told("good.example", ANSWERS)?, "others are cut off");
    denied(&setup, PER_RULE.into())?;
    let over = setup.status()?;
    let count = |of: &str| over.dns.over_quota.get(of).copied().unwrap_or_default();
    ensure!((count("name"), count("rule")) == (u64::from(20 - PER_NAME), 1), "{:?}", over.dns);
    ensure!(
        over.warnings.iter().any(|warning| warning.contains("addresses_per_name")),
        "{:?}",
        over.warnings
    );
    // One event for each quota, however many answers there were.
    let told = wait::until("an event of each quota", SOON, || {
        let told = refusals(&setup)?;
        Ok((told.len() >= 2).then_some(told))
    })?;
    let [name, rule] = told.as_slice() else { anyhow::bail!("{told:?}") };
    ensure!((name.reason, rule.reason) == (RefusedReason::NameQuota, RefusedReason::RuleQuota), "{told:?}");
    ensure!(name.name == flood(PER_NAME) && name.rule.as_deref() == Some("r"), "{name:?}");
    ensure!(rule.name == other(19) && rule.held_back == u64::from(19 - PER_NAME), "{rule:?}");
    // Nobody need be alive for it.
    daemon.kill()?;
    ensure!(!is_told(&flood(19), NOTHING)?, "without a daemon there is no quota");
    ensure!(is_told(&flood(0), ANSWERS)? && is_told("good.example", ANSWERS)?, "cut off without a daemon");
    let daemon = setup.start()?;
    denied(&setup, PER_RULE.into())?;
    daemon.stop()
}

/// Whether an answer for the name arrives.
fn is_told(name: &str, patience: Duration) -> Result<bool> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((RESOLVER_V4, 53))?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(&query(name))?;
    let mut answer = [0; 512];
    match socket.recv(&mut answer) {
        Ok(len) => {
            ensure!(len > 12 && answer[7] == 1, "the resolver does not know {name}");
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error).with_context(|| name.to_owned()),
    }
}

fn denied(setup: &Setup, wanted: usize) -> Result<()> {
    wait::until(&format!("{wanted} addresses to be denied, and no more"), SOON, || {
        Ok((setup.denied()?.len() == wanted).then_some(()))
    })
}

fn refusals(setup: &Setup) -> Result<Vec<RefusedBinding>> {
    let refused = |event| if let Event::RefusedBinding(refused) = event { Some(refused) } else { None };
    Ok(setup.events()?.into_iter().filter_map(refused).collect())
}
