//! Every way in which a policy directory changes, and the effect of each on addresses already seen.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_tests::daemon::{Setup, deny, replace_file};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::{Resolver, lookup};
use enforcer_tests::wait;

use super::{BAD, BAD_V4, GOOD, GOOD_V4, learn, resolver};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("reload_edit_in_place", edit_in_place),
        test("reload_atomic_rename", atomic_rename),
        test("reload_symlink_swap", symlink_swap),
        test("reload_delete", delete),
        test("reload_directory_recreated", directory_recreated),
        test("reload_broken_file_changes_nothing", broken_file),
        test("reload_half_written_file", half_written),
        test("reload_by_sighup", sighup),
        test("reload_takes_effect_within_a_second", within_a_second),
    ]
}

/// Bad is denied, good is not, and both answers were seen.
fn begin(setup: &Setup) -> Result<Resolver> {
    let resolver = resolver()?;
    learn(setup, BAD, BAD_V4)?;
    lookup(GOOD)?;
    Ok(resolver)
}

/// From now on good is denied and bad is free, without any new answer.
fn flipped(setup: &Setup) -> Result<()> {
    setup.until_denied(GOOD_V4, true)?;
    setup.until_denied(BAD_V4, false)
}

fn edit_in_place() -> Result<()> {
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    setup.write_policy("deny.toml", &deny(GOOD))?;
    flipped(&setup)
}

fn atomic_rename() -> Result<()> {
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    replace_file(&setup.policy("deny.toml"), &deny(GOOD))?;
    flipped(&setup)
}

/// As Kubernetes updates a ConfigMap: files are links through `..data`, which is swapped.
fn symlink_swap() -> Result<()> {
    let setup = Setup::new("")?;
    for (version, name) in [("..v1", BAD), ("..v2", GOOD)] {
        fs::create_dir(setup.policy(version))?;
        fs::write(setup.policy(version).join("deny.toml"), deny(name))?;
    }
    symlink("..v1", setup.policy("..data"))?;
    symlink("..data/deny.toml", setup.policy("deny.toml"))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    symlink("..v2", setup.policy("..data_tmp"))?;
    fs::rename(setup.policy("..data_tmp"), setup.policy("..data"))?;
    flipped(&setup)
}

fn delete() -> Result<()> {
    let setup = Setup::new("")?;
    setup.write_policy("bad.toml", &deny(BAD))?;
    setup.write_policy("good.toml", &deny(GOOD))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    setup.until_denied(GOOD_V4, true)?;
    fs::remove_file(setup.policy("bad.toml"))?;
    setup.until_denied(BAD_V4, false)?;
    ensure!(setup.is_denied(GOOD_V4)?, "the other file's rule went, too");
    Ok(())
}

fn directory_recreated() -> Result<()> {
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    fs::remove_dir_all(setup.policies())?;
    wait::until("the missing directory to be told", enforcer_tests::daemon::SOON, || {
        Ok(setup.status()?.policy.error)
    })?;
    ensure!(setup.is_denied(BAD_V4)?, "a missing directory is an error, and errors change nothing");
    fs::create_dir(setup.policies())?;
    setup.write_policy("deny.toml", &deny(GOOD))?;
    flipped(&setup)
}

fn broken_file() -> Result<()> {
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    // A second file that would flip everything, beside one that is broken: all or nothing.
    setup.write_policy("zz.toml", &format!("{}[[rule]\n", deny(GOOD)))?;
    let error = wait::until("the error", enforcer_tests::daemon::SOON, || Ok(setup.status()?.policy.error))?;
    ensure!(error.contains("zz.toml:5:"), "file, line and column: {error}");
    ensure!(setup.is_denied(BAD_V4)? && !setup.is_denied(GOOD_V4)?, "something changed");
    ensure!(setup.log().contains("zz.toml:5:"), "the log does not say it: {}", setup.log());
    setup.write_policy("zz.toml", &deny(GOOD))?;
    setup.until_denied(GOOD_V4, true)?;
    ensure!(setup.status()?.policy.error.is_none(), "the error stands after the file was mended");
    Ok(())
}

/// A writer that stops in the middle: what stands there is either refused or already what was meant.
fn half_written() -> Result<()> {
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    let whole = deny(GOOD);
    for end in [whole.len() - 12, 20, 9] {
        setup.write_policy("deny.toml", &whole[..end])?;
        wait::until("the half to be refused", enforcer_tests::daemon::SOON, || {
            let status = setup.status()?.policy;
            Ok(status.error.filter(|error| error.contains("deny.toml")))
        })?;
        ensure!(setup.is_denied(BAD_V4)?, "half a file freed an address");
    }
    setup.write_policy("deny.toml", &whole)?;
    flipped(&setup)
}

fn sighup() -> Result<()> {
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    let before = setup.status()?.policy.loads;
    daemon.signal(rustix::process::Signal::HUP)?;
    wait::until("another load", enforcer_tests::daemon::SOON, || {
        Ok((setup.status()?.policy.loads > before).then_some(()))
    })
}

/// Measured from the write to the moment a connect is refused, without the daemon's own word.
fn within_a_second() -> Result<()> {
    let server = enforcer_tests::server::Server::start()?;
    let setup = Setup::new("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    let attempt = enforcer_tests::client::way("udp_connected").expect("is in the table").attempt;
    let to = std::net::SocketAddr::new(GOOD_V4, server.port());
    attempt(to, b"before")?;
    setup.write_policy("deny.toml", &deny(GOOD))?;
    let start = wait::now();
    wait::until("a refusal", Duration::from_secs(10), || Ok(attempt(to, b"x").is_err().then_some(())))?;
    let took = start.elapsed();
    println!("a new rule took effect after {took:?}");
    ensure!(took < Duration::from_secs(1), "a new rule took effect after {took:?}");
    Ok(())
}
