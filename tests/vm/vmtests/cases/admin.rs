//! What an administrator asks of the running daemon: reload, apply on trial, explain.

use std::fs;
use std::io::Write;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use enforcer::api::Changes;
use enforcer::engine::explain::Explanation;
use enforcer_tests::daemon::{Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::lookup;

use super::{BAD, BAD_V4, GOOD, GOOD_V4, learn, resolver, setup};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("reload_tells_what_changed", reload_tells),
        test("apply_goes_back_when_nobody_confirms", goes_back),
        test("apply_goes_back_when_it_is_killed", goes_back_when_killed),
        test("apply_keeps_what_is_confirmed", keeps),
        test("apply_of_a_broken_file_changes_nothing", broken),
        test("explain_says_which_rule_decides_and_why", explain),
        test("an_exception_for_everything_leaves_the_canary_refused", everything),
        test("a_cgroup_that_is_none_is_said_in_words", no_cgroup),
    ]
}

/// The next daemon finds the networks of the one before it when it lets the canary fly.
fn everything() -> Result<()> {
    let setup = setup("")?;
    let rule = |name: &str, more: &str| {
        format!(
            "[[rule]]\nname = \"{name}\"\naction = \"allow\"\nnetworks = [\"0.0.0.0/0\", \"::/0\"]\n{more}\n"
        )
    };
    setup.write_policy("allow.toml", &(rule("all", "") + &rule("some", "ports = [9]")))?;
    setup.start()?.kill()?;
    // Fails where the canary gets through.
    setup.start()?.stop()
}

fn no_cgroup() -> Result<()> {
    let setup = setup("cgroup = \"/tmp\"")?;
    let status = setup.spawn()?.ended()?;
    let log = setup.log();
    ensure!(
        !status.success() && log.contains("cgroup = \"/tmp\" in the settings is no control group"),
        "{log}"
    );
    Ok(())
}

fn reload(setup: &Setup) -> Result<Changes> {
    let output = setup.command(&["reload", "--json"])?;
    ensure!(output.status.success(), "enforcer reload: {output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn reload_tells() -> Result<()> {
    let setup = setup("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let _resolver = resolver()?;
    learn(&setup, BAD, BAD_V4)?;
    lookup(GOOD)?;
    let same = reload(&setup)?;
    ensure!(same.added.is_empty() && same.changed.is_empty() && same.denied.is_empty(), "{same:?}");
    // Written and asked for at once: the daemon may have noticed by itself before, then there is nothing left to tell.
    fs::rename(setup.policy("deny.toml"), setup.policy("deny.off"))?;
    fs::write(setup.policy("new.toml"), deny(GOOD))?;
    let changes = reload(&setup)?;
    if !changes.added.is_empty() {
        ensure!(
            changes.added == [format!("no-{GOOD}")] && changes.removed == [format!("no-{BAD}")],
            "{changes:?}"
        );
        ensure!(changes.denied.contains(&GOOD_V4) && changes.freed.contains(&BAD_V4), "{changes:?}");
    }
    ensure!(
        setup.is_denied(GOOD_V4)? && !setup.is_denied(BAD_V4)?,
        "reload returned before the rules were in force"
    );
    setup.write_policy("new.toml", "[[rule]\n")?;
    let refused = setup.command(&["reload"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && said.contains("new.toml:1:"), "{refused:?}");
    ensure!(setup.is_denied(GOOD_V4)?, "an error changed something");
    Ok(())
}

/// `enforcer apply`, with somebody at its input.
pub(super) fn apply(setup: &Setup, text: &str, time: &str) -> Result<Child> {
    let file = setup.directory.join("good.toml");
    fs::write(&file, text)?;
    let mut command = std::process::Command::new("/payload/enforcer");
    command.arg("--config").arg(setup.directory.join("enforcer.toml")).arg("apply").arg(file);
    command.args(["--confirm", time]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("enforcer apply")
}

/// Bad is denied, and both names are known.
fn begin(setup: &Setup) -> Result<enforcer_tests::resolver::Resolver> {
    let resolver = resolver()?;
    learn(setup, BAD, BAD_V4)?;
    lookup(GOOD)?;
    Ok(resolver)
}

fn on_trial(setup: &Setup) -> Result<()> {
    setup.until_denied(GOOD_V4, true)?;
    let warned = setup.status()?.warnings;
    ensure!(warned.iter().any(|warning| warning.contains("good.toml is on trial")), "{warned:?}");
    ensure!(!setup.policy("good.toml").exists(), "the file stands before it was confirmed");
    Ok(())
}

fn gone_back(setup: &Setup) -> Result<()> {
    setup.until_denied(GOOD_V4, false)?;
    ensure!(setup.is_denied(BAD_V4)?, "what was before is not in force");
    ensure!(!setup.policy("good.toml").exists(), "a file stands that nobody confirmed");
    ensure!(setup.status()?.policy.error.is_none(), "going back left an error");
    Ok(())
}

fn goes_back() -> Result<()> {
    let setup = setup("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    let child = apply(&setup, &deny(GOOD), "3s")?;
    on_trial(&setup)?;
    let other = setup.command(&["apply", "/run/enforcer-test/good.toml"])?;
    ensure!(other.status.code() == Some(1), "two trials at once: {other:?}");
    // Its input stays open, and nobody presses Enter.
    let output = child.wait_with_output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    gone_back(&setup)?;
    ensure!(!setup.policy(".enforcer-apply-good.toml").exists(), "the staged file was left");
    let late = setup.command(&["apply", "--keep"])?;
    ensure!(late.status.code() == Some(1), "kept after the time was up: {late:?}");
    Ok(())
}

fn goes_back_when_killed() -> Result<()> {
    let setup = setup("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    let mut child = apply(&setup, &deny(GOOD), "3s")?;
    on_trial(&setup)?;
    child.kill()?;
    child.wait()?;
    gone_back(&setup)
}

fn keeps() -> Result<()> {
    let setup = setup("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    let mut child = apply(&setup, &deny(GOOD), "60s")?;
    on_trial(&setup)?;
    // The files are read again while it is on trial.
    daemon.signal(rustix::process::Signal::HUP)?;
    child.stdin.as_mut().context("no input")?.write_all(b"\n")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(fs::read_to_string(setup.policy("good.toml"))? == deny(GOOD), "another file stands there");
    ensure!(setup.is_denied(GOOD_V4)? && setup.is_denied(BAD_V4)?, "not in force");
    // From elsewhere, and undone.
    for (word, denied) in [("--undo", true), ("--keep", false)] {
        let child = apply(&setup, &deny("other.example"), "60s")?;
        setup.until_denied(GOOD_V4, false)?;
        let output = setup.command(&["apply", word])?;
        ensure!(output.status.success(), "{word}: {output:?}");
        ensure!(setup.is_denied(GOOD_V4)? == denied, "{word}");
        let mut child = child;
        child.kill()?;
        child.wait()?;
    }
    ensure!(fs::read_to_string(setup.policy("good.toml"))? == deny("other.example"), "not kept");
    Ok(())
}

fn broken() -> Result<()> {
    let setup = setup("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    let output = apply(&setup, "[[rule]\n", "60s")?.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // As if it stood in its place.
    ensure!(output.status.code() == Some(1) && said.contains("policies.d/good.toml:1:"), "{output:?}");
    gone_back(&setup)?;
    ensure!(!setup.policy(".enforcer-apply-good.toml").exists(), "the staged file was left");
    Ok(())
}

fn explanation(setup: &Setup, what: &str) -> Result<Explanation> {
    let output = setup.command(&["explain", "--json", what])?;
    ensure!(output.status.success(), "enforcer explain {what}: {output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn explain() -> Result<()> {
    let setup = setup("")?;
    setup.write_policy("deny.toml", &format!("# words\n{}", deny(BAD)))?;
    let _daemon = setup.start()?;
    let _resolver = begin(&setup)?;
    let place = format!("{}:3:8", setup.policy("deny.toml").display());
    for what in [BAD.to_owned(), BAD_V4.to_string()] {
        let said = explanation(&setup, &what)?;
        ensure!(said.verdict == "deny" && said.rule == Some(format!("no-{BAD}")), "{said:?}");
        ensure!(
            said.rules.iter().any(|says| says.decides && says.at == place && says.about == BAD),
            "{said:?}"
        );
        let address =
            said.addresses.iter().find(|address| address.address == BAD_V4).context("no address")?;
        ensure!(
            address.verdict == "deny" && address.expires_in_seconds.is_some_and(|left| left > 60),
            "{said:?}"
        );
        ensure!(address.names.iter().any(|leads| leads.name == BAD && leads.asked), "{said:?}");
    }
    ensure!(explanation(&setup, GOOD)?.verdict == "allow", "good is denied");
    let attempt = enforcer_tests::client::way("udp_connected").context("is in the table")?.attempt;
    ensure!(attempt(std::net::SocketAddr::new(BAD_V4, 9), b"x").is_err(), "not refused");
    let event = setup.event("the refusal", |connect| connect.dst_ip == BAD_V4)?;
    let said = explanation(&setup, &format!("event:{}", event.sequence))?;
    ensure!(said.what == BAD_V4.to_string() && said.verdict == "deny", "{said:?}");
    let none = setup.command(&["explain", "event:999999999"])?;
    ensure!(!none.status.success(), "{none:?}");
    // From the files alone.
    let output = setup.command(&["explain", "--policies", &setup.policies().display().to_string(), BAD])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains(&format!("=> {place}: the rule no-{BAD} denies {BAD}")), "{text}");
    Ok(())
}
