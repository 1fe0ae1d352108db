//! The lab itself: if these fail, no other result means anything. No daemon runs.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::{Resolver, lookup};
use enforcer_tests::server::Server;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("lab_lsm_has_bpf", lsm_has_bpf),
        test("lab_no_enforcer_is_left_over", no_enforcer_is_left_over),
        test("lab_resolver_answers", resolver_answers),
        test("lab_curl_reaches_the_far_side", curl_reaches_the_far_side),
    ]
}

fn lsm_has_bpf() -> Result<()> {
    let list = fs::read_to_string("/sys/kernel/security/lsm").context("the list of active LSMs")?;
    ensure!(list.trim().split(',').any(|name| name == "bpf"), "bpf is not an active LSM: {list}");
    Ok(())
}

fn no_enforcer_is_left_over() -> Result<()> {
    let pins = fs::read_dir("/sys/fs/bpf")?.count();
    ensure!(pins == 0, "{pins} things are pinned in /sys/fs/bpf before any test");
    Ok(())
}

fn resolver_answers() -> Result<()> {
    let v4: IpAddr = "203.0.113.7".parse()?;
    let v6: IpAddr = "2001:db8::7".parse()?;
    let mut resolver = Resolver::start(
        &[("both.example", v4), ("both.example", v6)],
        &["--cname=alias.example,both.example"],
    )?;
    for name in ["both.example", "alias.example"] {
        let addresses = lookup(name)?;
        ensure!(addresses.contains(&v4) && addresses.contains(&v6), "{name} is {addresses:?}");
    }
    ensure!(lookup("unknown.example").is_err(), "a name that nobody gave resolves");
    let other: IpAddr = "198.51.100.9".parse()?;
    resolver.replace(&[("both.example", other)])?;
    ensure!(lookup("both.example")? == [other], "the old records are still there");
    Ok(())
}

fn curl_reaches_the_far_side() -> Result<()> {
    let server = Server::start()?;
    let _resolver = Resolver::start(&[("web.example", "203.0.113.80".parse()?)], &[])?;
    let url = format!("http://web.example:{}/hello", server.port());
    let output = Command::new("curl").args(["-sS", "--max-time", "10", &url]).output()?;
    ensure!(output.status.success() && output.stdout == b"ok\n", "curl {url}: {output:?}");
    server.received("GET /hello")
}
