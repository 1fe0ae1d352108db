//! On a kernel whose list of active LSMs lacks `bpf`, where LSM programs load, attach, and are never called.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use enforcer_tests::client::way;
use enforcer_tests::daemon::{Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::server::Server;

use super::{BAD, BAD_V4, learn, refused, resolver};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("without_bpf_lsm_it_says_so_and_uses_cgroup_hooks", falls_back),
        test("without_bpf_lsm_require_lsm_refuses_to_start", require_lsm),
        test("without_bpf_lsm_the_canary_finds_a_list_that_cannot_be_read", unknown_list),
    ]
}

fn falls_back() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    let tcp = way("tcp_v4").expect("is in the table");
    refused(tcp.name, tcp.attempt, SocketAddr::new(BAD_V4, server.port()))?;
    let status = setup.status()?;
    ensure!(status.enforcement.layer == "cgroup" && status.enforcement.active, "{:?}", status.enforcement);
    ensure!(status.enforcement.reason.is_some(), "{:?}", status.enforcement);
    // The remedy keeps the list that is there: `lsm=` replaces it.
    let remedy = status.warnings.join("\n");
    let list = std::fs::read_to_string("/sys/kernel/security/lsm")?;
    ensure!(remedy.contains(&format!("lsm={},bpf", list.trim())), "no line to add in: {remedy}");
    ensure!(setup.log().contains("not by LSM"), "the log does not say it: {}", setup.log());
    daemon.stop()
}

fn require_lsm() -> Result<()> {
    let setup = Setup::new("require_lsm = true")?;
    let status = setup.spawn()?.ended()?;
    ensure!(!status.success(), "it started");
    ensure!(setup.log().contains("requires LSM") && setup.log().contains("lsm="), "{}", setup.log());
    Ok(())
}

/// Nothing says that the hooks are dead but the connect that gets through.
fn unknown_list() -> Result<()> {
    std::process::Command::new("umount").arg("/sys/kernel/security").status()?;
    let setup = Setup::new("")?;
    let daemon = setup.start()?;
    let enforcement = setup.status()?.enforcement;
    let reason = enforcement.reason.clone().unwrap_or_default();
    ensure!(enforcement.layer == "cgroup" && reason.contains("canary"), "{enforcement:?}");
    daemon.stop()
}
