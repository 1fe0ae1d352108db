//! The daemon's life: start, stop, crash, restart, what it says about itself.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::{Attempt, way};
use enforcer_tests::daemon::{SOON, Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::lookup;
use enforcer_tests::server::Server;
use enforcer_tests::wait;

use super::{BAD, BAD_V4, learn, refused, resolver};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("attach_refuses_detach_frees_twice", attach_detach_twice),
        test("a_crash_keeps_denying_and_the_next_daemon_adopts", crash),
        test("on_stop_keep_keeps_denying", keep),
        test("a_second_daemon_is_refused", second),
        test("a_broken_policy_at_start_is_told_and_mended", broken_at_start),
        test("the_control_socket_is_for_root_alone", socket_is_private),
        test("check_reports_errors_and_exit_codes", check),
    ]
}

fn tcp() -> Attempt {
    way("tcp_v4").expect("is in the table").attempt
}

fn attach_detach_twice() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let to = SocketAddr::new(BAD_V4, server.port());
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    for round in ["first", "second"] {
        tcp()(to, format!("before-{round}").as_bytes()).with_context(|| format!("before the {round}"))?;
        server.received(&format!("before-{round}"))?;
        let daemon = setup.start()?;
        learn(&setup, BAD, BAD_V4)?;
        refused(round, tcp(), to)?;
        daemon.stop()?;
        // The kernel detaches in its own time (6.12: a moment after the last pin is gone).
        let start = wait::now();
        let after = format!("after-{round}");
        wait::until("connects to be free after the stop", SOON, || Ok(Some(tcp()(to, after.as_bytes())?)))?;
        println!("free {:?} after the {round} stop", start.elapsed());
        server.received(&format!("after-{round}"))?;
    }
    println!("{}", setup.log());
    ensure!(!std::path::Path::new("/sys/fs/bpf/enforcer").exists(), "pins are left after a stop");
    Ok(())
}

fn crash() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let to = SocketAddr::new(BAD_V4, server.port());
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    daemon.kill()?;
    refused("while the daemon is dead", tcp(), to)?;
    let daemon = setup.start()?;
    ensure!(setup.status()?.map.adopted >= 1, "{:?}", setup.status()?.map);
    refused("after adoption", tcp(), to)?;
    // What happened in between is in the ring, and reported now.
    setup.event("the connect while it was dead", |event| event.dst_ip == BAD_V4)?;
    // The rule is gone: so is what was adopted for it.
    setup.write_policy("deny.toml", &deny("other.example"))?;
    setup.until_denied(BAD_V4, false)?;
    tcp()(to, b"freed")?;
    daemon.stop()
}

fn keep() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let to = SocketAddr::new(BAD_V4, server.port());
    let setup = Setup::new("on_stop = \"keep\"")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    daemon.stop()?;
    refused("after a stop that keeps", tcp(), to)
}

fn second() -> Result<()> {
    let setup = Setup::new("")?;
    let daemon = setup.start()?;
    let output = setup.command(&["run"])?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && words.contains("another enforcer"), "{output:?}");
    ensure!(setup.status()?.enforcement.active, "the first one was harmed");
    daemon.stop()
}

fn broken_at_start() -> Result<()> {
    let _resolver = resolver()?;
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", "[[rule]]\nname = \"x\"\nacton = \"deny\"\n")?;
    let daemon = setup.start()?;
    let error = setup.status()?.policy.error.unwrap_or_default();
    ensure!(error.contains("deny.toml:3:1"), "{error}");
    setup.write_policy("deny.toml", &deny(BAD))?;
    learn(&setup, BAD, BAD_V4)?;
    ensure!(setup.status()?.policy.error.is_none(), "the error is still there");
    daemon.stop()
}

fn socket_is_private() -> Result<()> {
    let setup = Setup::new("")?;
    let daemon = setup.start()?;
    let socket = setup.directory.join("control.sock");
    let script = format!(
        "import os, socket\nos.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\ns.connect('{}')\n",
        socket.display()
    );
    let output = std::process::Command::new("python3").args(["-c", &script]).output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(words.contains("PermissionError"), "nobody may connect: {words}");
    daemon.stop()
}

fn check() -> Result<()> {
    let setup = Setup::new("")?;
    setup.write_policy("good.toml", &deny(BAD))?;
    let good = setup.command(&["check"])?;
    ensure!(good.status.code() == Some(0), "{good:?}");
    setup.write_policy("bad.toml", "[[rule]]\nname = \"x\"\naction = \"den\"\nhosts = [\"a.example\"]\n")?;
    let bad = setup.command(&["check"])?;
    let words = String::from_utf8_lossy(&bad.stderr);
    ensure!(bad.status.code() == Some(1) && words.contains("bad.toml:3:10"), "{words}");
    ensure!(setup.command(&["status"])?.status.code() == Some(3), "no daemon runs");
    lookup("localhost")?;
    Ok(())
}
