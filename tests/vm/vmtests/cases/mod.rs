//! The tests by name. A name says what is promised.

mod admin;
mod askers;
mod backstop;
mod browser;
mod cached;
mod clients;
mod defaults;
mod encrypted_dns;
mod established;
mod events;
mod exec;
mod exec_cargo;
pub(crate) mod facts;
mod flows;
mod forgery;
mod last_good;
mod life;
mod outcome;
mod protected;
mod quota;
mod race;
mod reload;
mod resolved;
pub(crate) mod resolvers;
mod rules;
pub(crate) mod scopes;
mod shared;
mod sinks;
mod smoke;
mod spellings;
mod verifier;
mod volume;
mod ways;
mod without_bpf;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, bail};
use enforcer_tests::client::Attempt;
use enforcer_tests::daemon::Setup;
use enforcer_tests::harness::Test;
use enforcer_tests::resolver::{Resolver, lookup};

/// A word of the kernel's command line: this machine was started without `bpf` among its LSMs, on purpose.
const WITHOUT_BPF: &str = "lab.without_bpf";

/// Set in a container, where the kernel may know no LSM programs and serves others as well.
pub(crate) fn is_native() -> bool {
    std::env::var_os("LAB_NATIVE").is_some()
}

pub(crate) fn all() -> Vec<Test> {
    if is_native() {
        return [
            race::native(),
            resolvers::tests(),
            events::native(),
            askers::tests(),
            facts::native(),
            flows::tests(),
            volume::tests(),
            forgery::tests(),
            protected::tests(),
            quota::tests(),
            shared::tests(),
            spellings::tests(),
            rules::tests(),
            scopes::tests(),
            defaults::tests(),
            encrypted_dns::tests(),
            cached::tests(),
            resolved::tests(),
            admin::tests(),
            last_good::tests(),
            backstop::tests(),
            exec::tests(),
            ways::native(),
            established::tests(),
            sinks::tests(),
            browser::tests(),
            exec_cargo::tests(),
        ]
        .concat();
    }
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if command_line.split_whitespace().any(|word| word == WITHOUT_BPF) {
        return without_bpf::tests();
    }
    [
        smoke::tests(),
        verifier::tests(),
        ways::tests(),
        clients::tests(),
        life::tests(),
        last_good::tests(),
        reload::tests(),
        rules::tests(),
        scopes::tests(),
        defaults::tests(),
        encrypted_dns::tests(),
        cached::tests(),
        resolved::tests(),
        admin::tests(),
        exec::tests(),
        exec_cargo::tests(),
        race::tests(),
        events::tests(),
        askers::tests(),
        facts::tests(),
        flows::tests(),
        volume::tests(),
        outcome::tests(),
        forgery::tests(),
        protected::tests(),
        quota::tests(),
        shared::tests(),
        spellings::tests(),
        backstop::tests(),
        established::tests(),
        browser::tests(),
    ]
    .concat()
}

/// For tests that also run natively, where there are no LSM programs.
pub(crate) fn setup(settings: &str) -> Result<Setup> {
    let layer = if is_native() { "layer = \"cgroup\"\n" } else { "" };
    Setup::new(&format!("{layer}{settings}"))
}

pub(crate) const BAD: &str = "bad.example";
pub(crate) const GOOD: &str = "good.example";
pub(crate) const BAD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 66));
pub(crate) const GOOD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
pub(crate) const BAD_V6: &str = "2001:db8::66";
pub(crate) const GOOD_V6: &str = "2001:db8::10";

/// A resolver that knows a bad and a good name, each with both kinds of addresses.
pub(crate) fn resolver() -> Result<Resolver> {
    let records = [(BAD, BAD_V4), (BAD, BAD_V6.parse()?), (GOOD, GOOD_V4), (GOOD, GOOD_V6.parse()?)];
    Resolver::start(&records, &[])
}

/// The name is looked up, and the daemon has heard the answer.
pub(crate) fn learn(setup: &Setup, name: &str, address: IpAddr) -> Result<()> {
    lookup(name)?;
    setup.until_denied(address, true)
}

/// The attempt must end with EPERM.
pub(crate) fn refused(what: &str, attempt: Attempt, to: SocketAddr) -> Result<()> {
    match attempt(to, b"must-not-arrive") {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        Err(error) => bail!("{what} to {to}: {error}, not EPERM"),
        Ok(()) => bail!("{what} to {to} was not refused"),
    }
}
