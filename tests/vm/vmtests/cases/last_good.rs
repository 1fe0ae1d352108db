//! A start that finds errors in the policy files enforces the policy that was last in force.
//!
//! A stop lets go of everything, so that a start after it finds what a boot finds: files, and nothing in the kernel.

use std::fs;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use enforcer_tests::daemon::{Daemon, SOON, Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::lookup;
use enforcer_tests::wait;

use super::admin::apply;
use super::{BAD, BAD_V4, GOOD, GOOD_V4, learn, resolver, setup};

const BROKEN: &str = "[[rule]]\nname = \"x\"\nacton = \"deny\"\n";

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("a_start_with_broken_files_enforces_the_last_good_policy", broken_files),
        test("a_policy_that_was_taken_away_does_not_come_back", taken_away),
        test("a_policy_on_trial_is_no_last_good_one", on_trial),
        test("a_copy_that_others_may_write_is_not_enforced", untrusted),
        test("an_error_in_the_settings_leaves_in_force_what_is_pinned", broken_settings),
    ]
}

fn copy(setup: &Setup) -> PathBuf {
    setup.directory.join("state.last-good")
}

/// Waits until the copy has this word.
fn kept(setup: &Setup, word: &str) -> Result<()> {
    wait::until(&format!("the copy with {word}"), SOON, || {
        let text = fs::read(copy(setup)).unwrap_or_default();
        Ok(String::from_utf8_lossy(&text).contains(word).then_some(()))
    })
}

/// A daemon that denies `BAD`, and has kept that.
fn denying(setup: &Setup) -> Result<Daemon<'_>> {
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    kept(setup, BAD)?;
    Ok(daemon)
}

fn start_with_an_error(setup: &Setup) -> Result<Daemon<'_>> {
    setup.write_policy("deny.toml", BROKEN)?;
    setup.start()
}

fn free(setup: &Setup, name: &str, address: IpAddr) -> Result<()> {
    lookup(name)?;
    // What the kernel knows of the answer it knew before `lookup` did.
    connect(address).with_context(|| format!("{name} is denied: {:?}", setup.denied()))
}

fn connect(address: IpAddr) -> io::Result<()> {
    UdpSocket::bind("0.0.0.0:0")?.connect((address, 9))
}

fn broken_files() -> Result<()> {
    let _resolver = resolver()?;
    let setup = setup("")?;
    let list = setup.directory.join("names.txt");
    fs::write(&list, format!("{GOOD}\n"))?;
    let lists = format!("lists = [{{ path = \"{}\", format = \"domains\" }}]\n", list.display());
    setup.write_policy("deny.toml", &(deny(BAD) + &lists))?;
    let daemon = setup.start()?;
    kept(&setup, GOOD)?;
    daemon.stop()?;
    ensure!(fs::metadata(copy(&setup))?.permissions().mode() & 0o777 == 0o600, "others may read the copy");

    // The policy has an error, and its list is gone.
    fs::remove_file(&list)?;
    let daemon = start_with_an_error(&setup)?;
    learn(&setup, BAD, BAD_V4)?;
    learn(&setup, GOOD, GOOD_V4)?;
    let policy = setup.status()?.policy;
    ensure!(policy.error.as_ref().is_some_and(|error| error.contains("deny.toml:3:1")), "{policy:?}");
    ensure!(policy.last_good.is_some() && policy.rules == 1, "{policy:?}");
    let screen = setup.command(&["status"])?;
    let words = String::from_utf8_lossy(&screen.stdout);
    ensure!(words.contains("the last good policy, put in force at 20"), "{words}");
    ensure!(setup.log().contains("the last good policy, put in force at 20"), "{}", setup.log());
    // Still broken: nothing changes, and the next start finds the same.
    setup.command(&["reload"])?;
    ensure!(setup.is_denied(BAD_V4)?, "a second look at the broken files freed it");
    daemon.stop()?;
    let daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;

    // Mended, with another rule: that one is in force, and is what the next start falls back to.
    setup.write_policy("deny.toml", &deny("other.example"))?;
    setup.until_denied(BAD_V4, false)?;
    let policy = setup.status()?.policy;
    ensure!(policy.error.is_none() && policy.last_good.is_none(), "{policy:?}");
    kept(&setup, "other.example")?;
    daemon.stop()?;
    let daemon = start_with_an_error(&setup)?;
    free(&setup, BAD, BAD_V4)?;
    daemon.stop()
}

/// Also while no daemon runs.
fn taken_away() -> Result<()> {
    let _resolver = resolver()?;
    let setup = setup("")?;
    let daemon = denying(&setup)?;
    daemon.stop()?;
    fs::remove_file(setup.policy("deny.toml"))?;
    let daemon = setup.start()?;
    let policy = setup.status()?.policy;
    ensure!(policy.error.is_none() && policy.rules == 0, "{policy:?}");
    free(&setup, BAD, BAD_V4)?;
    daemon.stop()?;
    // The last good policy is the empty one.
    let daemon = start_with_an_error(&setup)?;
    ensure!(setup.status()?.policy.last_good.is_some(), "{:?}", setup.status()?.policy);
    free(&setup, BAD, BAD_V4)?;
    daemon.stop()
}

fn on_trial() -> Result<()> {
    let _resolver = resolver()?;
    let setup = setup("")?;
    let daemon = denying(&setup)?;
    let mut apply = apply(&setup, &deny(GOOD), "60s")?;
    learn(&setup, GOOD, GOOD_V4)?;
    daemon.stop()?;
    apply.kill()?;
    apply.wait()?;
    let daemon = start_with_an_error(&setup)?;
    learn(&setup, BAD, BAD_V4)?;
    free(&setup, GOOD, GOOD_V4)?;
    daemon.stop()
}

fn untrusted() -> Result<()> {
    let _resolver = resolver()?;
    let setup = setup("")?;
    let daemon = denying(&setup)?;
    daemon.stop()?;
    fs::set_permissions(copy(&setup), PermissionsExt::from_mode(0o602))?;
    let daemon = start_with_an_error(&setup)?;
    let policy = setup.status()?.policy;
    ensure!(policy.last_good.is_none() && policy.rules == 0, "{policy:?}");
    ensure!(setup.log().contains("remove it"), "{}", setup.log());
    free(&setup, BAD, BAD_V4)?;
    daemon.stop()
}

fn broken_settings() -> Result<()> {
    let _resolver = resolver()?;
    let setup = setup("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    daemon.kill()?;
    let file = setup.directory.join("enforcer.toml");
    let settings = fs::read_to_string(&file)?;
    fs::write(&file, format!("defualt = \"deny\"\n{settings}"))?;
    let ran = setup.command(&["run"])?;
    let words = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.code() == Some(2) && words.contains("enforcer.toml:1:1"), "{ran:?}");
    let error = connect(BAD_V4).err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(libc::EPERM), "{error:?}, not EPERM");
    fs::write(&file, settings)?;
    let daemon = setup.start()?;
    ensure!(setup.status()?.map.adopted >= 1, "{:?}", setup.status()?.map);
    daemon.stop()
}
