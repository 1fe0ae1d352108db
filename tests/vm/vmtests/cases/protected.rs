//! Whoever owns a denied name chooses its addresses: none of the host's own can be denied that way.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use enforcer::engine::record::Event;
use enforcer_tests::client::way;
use enforcer_tests::daemon::SOON;
use enforcer_tests::harness::{Test, test};
use enforcer_tests::network::RESOLVER_V4;
use enforcer_tests::resolver::{AAAA, query, question};
use enforcer_tests::wait;

use super::forgery::{POLICY, answer, client, server};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("a_denied_name_cannot_have_the_host_denied", hostile),
        test("never_deny_follows_the_host", follows),
    ]
}

/// Every address without which the host is cut off from something, as the owner of a denied name answers them.
fn hostile() -> Result<()> {
    let setup = super::setup("")?;
    setup.write_policy("deny.toml", POLICY)?;
    let gateway = "203.0.113.201";
    ip(&format!("route add default via {gateway} dev near onlink"))?;
    let _daemon = setup.start()?;
    let addresses =
        ["127.0.0.1", "10.99.0.2", gateway, "10.99.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"];
    let outcome = addresses.iter().try_for_each(|address| {
        let address: Ipv4Addr = address.parse()?;
        point(address)?;
        ensure!(!is_refused(address)?, "{address} is denied");
        let told = |event: &Event| match event {
            Event::RefusedBinding(refused) => refused.address == address,
            _ => false,
        };
        let found = wait::until(&format!("the event of {address}"), SOON, || {
            Ok(setup.events()?.into_iter().find(told))
        })?;
        let Event::RefusedBinding(refused) = found else { bail!("another event: {found:?}") };
        ensure!(refused.name == "own.bad.example" && refused.rule.as_deref() == Some("r"), "{refused:?}");
        // What was said again may have been heard on another CPU, and is then held back in the daemon.
        ensure!(refused.server == RESOLVER_V4 && refused.held_back <= 1, "{refused:?}");
        // Said again, it is not told again.
        point(address)
    });
    let denied = setup.denied();
    ip(&format!("route del default via {gateway} dev near"))?;
    outcome?;
    ensure!(denied.as_ref().is_ok_and(Vec::is_empty), "{denied:?}");
    point_v6(Ipv6Addr::LOCALHOST)?;
    let events = wait::until("the event of ::1", SOON, || {
        let events = setup.events()?;
        let told =
            |event: &Event| matches!(event, Event::RefusedBinding(it) if it.address == Ipv6Addr::LOCALHOST);
        Ok(events.iter().any(told).then_some(events))
    })?;
    let told = events.iter().filter(|event| matches!(event, Event::RefusedBinding(_))).count();
    ensure!(told == addresses.len() + 1, "{told} events of {}: {events:?}", addresses.len() + 1);
    Ok(())
}

/// Less than the interval in which the daemon looks of its own accord. An emulated machine needs longer for everything.
fn soon() -> Duration {
    Duration::from_secs(if super::is_native() { 2 } else { 4 })
}

/// The owner of a denied name says that it is at this address; and a program believes it.
fn point(address: Ipv4Addr) -> Result<()> {
    let (resolver, asking) = (server(RESOLVER_V4)?, client()?);
    let query = query("own.bad.example");
    asking.send_to(&query, (RESOLVER_V4, 53))?;
    resolver.recv(&mut [0; 512])?;
    resolver.send_to(&answer(&query, address), asking.local_addr()?)?;
    asking.recv(&mut [0; 512])?;
    Ok(())
}

fn point_v6(address: Ipv6Addr) -> Result<()> {
    let (resolver, asking) = (server(RESOLVER_V4)?, client()?);
    let query = question("own.bad.example", AAAA);
    asking.send_to(&query, (RESOLVER_V4, 53))?;
    resolver.recv(&mut [0; 512])?;
    let mut message = query;
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[7] = 1;
    message.extend([0xc0, 12, 0, AAAA, 0, 1, 0, 0, 0, 60, 0, 16]);
    message.extend(address.octets());
    resolver.send_to(&message, asking.local_addr()?)?;
    asking.recv(&mut [0; 512])?;
    Ok(())
}

fn is_refused(address: Ipv4Addr) -> Result<bool> {
    let connect = way("udp_connected").context("no such way")?;
    match (connect.attempt)(SocketAddr::new(address.into(), 9), b"x") {
        Ok(()) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
        // Whatever else comes of it.
        Err(_) => Ok(false),
    }
}

fn ip(words: &str) -> Result<()> {
    let status = Command::new("ip").args(words.split(' ')).status()?;
    ensure!(status.success(), "ip {words}: {status}");
    Ok(())
}

/// Addresses, gateways and resolvers that come while the daemon runs are protected, and those that go are not.
fn follows() -> Result<()> {
    let setup = super::setup("")?;
    setup.write_policy("deny.toml", POLICY)?;
    let _daemon = setup.start()?;
    let resolvers = fs::read_to_string("/etc/resolv.conf")?;
    let (own, gateway, resolver) =
        (Ipv4Addr::new(203, 0, 113, 200), Ipv4Addr::new(203, 0, 113, 201), Ipv4Addr::new(203, 0, 113, 202));
    type Change<'a> = &'a dyn Fn() -> Result<()>;
    let more = format!("nameserver {RESOLVER_V4}\nnameserver {resolver}\n");
    let rows: [(&str, Ipv4Addr, Change<'_>, Change<'_>); 3] = [
        ("own", own, &|| ip("addr add 203.0.113.200/32 dev lo"), &|| ip("addr del 203.0.113.200/32 dev lo")),
        ("gateway", gateway, &|| ip("route add default via 203.0.113.201 dev near onlink"), &|| {
            ip("route del default via 203.0.113.201 dev near")
        }),
        ("resolver", resolver, &|| Ok(fs::write("/etc/resolv.conf", &more)?), &|| {
            Ok(fs::write("/etc/resolv.conf", &resolvers)?)
        }),
    ];
    for (what, address, add, remove) in rows {
        point(address)?;
        ensure!(is_refused(address)?, "{what}: {address} is not denied, nor is it the host's");
        add()?;
        let freed =
            wait::until(&format!("{what} to be free"), soon(), || Ok((!is_refused(address)?).then_some(())));
        let pointed = freed.and_then(|()| point(address));
        let refused = pointed.and_then(|()| is_refused(address));
        remove()?;
        ensure!(!refused?, "{what}: {address} is denied");
        wait::until(
            &format!("{what} to be denied again"),
            soon(),
            || Ok(is_refused(address)?.then_some(())),
        )?;
    }
    Ok(())
}
