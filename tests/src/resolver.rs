//! A real dnsmasq on the far side, with the records that a test wants.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::network::{FAR, RESOLVER_V4, RESOLVER_V6};
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Resolver {
    process: Child,
    hosts: PathBuf,
}

/// What the resolver shall say besides its hosts: `--cname=…`, `--local-ttl=…`, as dnsmasq spells it.
pub type Options<'a> = &'a [&'a str];

impl Resolver {
    /// Started and answering.
    pub fn start(records: &[(&str, IpAddr)], options: Options<'_>) -> Result<Self> {
        let hosts = PathBuf::from("/run/vmtests-hosts");
        write_hosts(&hosts, records)?;
        let process = Command::new("ip")
            .args(["netns", "exec", FAR, "dnsmasq"])
            .args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file="])
            .args(["--bind-interfaces", "--log-facility=/dev/null"])
            .arg(format!("--listen-address={RESOLVER_V4},{RESOLVER_V6}"))
            .arg(format!("--addn-hosts={}", hosts.display()))
            .arg("--local=/example/")
            .args(options)
            .stdin(Stdio::null())
            .spawn()
            .context("starting dnsmasq")?;
        let resolver = Self { process, hosts };
        if let Some((name, _)) = records.first() {
            wait::until("dnsmasq to answer", PATIENCE, || lookup(name).map(Some))?;
        }
        Ok(resolver)
    }

    /// Other records from now on.
    pub fn replace(&self, records: &[(&str, IpAddr)]) -> Result<()> {
        write_hosts(&self.hosts, records)?;
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP)?;
        for (name, address) in records {
            wait::until(&format!("dnsmasq to say that {name} is {address}"), PATIENCE, || {
                Ok(lookup(name)?.contains(address).then_some(()))
            })?;
        }
        Ok(())
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        // It has nothing to save, and a resolver that is gone already is no trouble.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The addresses of a name as every program here gets them: glibc's `getaddrinfo`, by way of `getent`.
pub fn lookup(name: &str) -> Result<Vec<IpAddr>> {
    let output = Command::new("getent").args(["ahosts", name]).output().context("getent")?;
    ensure!(output.status.success(), "getent ahosts {name}: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let mut addresses =
        text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect::<Vec<_>>();
    addresses.dedup();
    Ok(addresses)
}

fn write_hosts(path: &PathBuf, records: &[(&str, IpAddr)]) -> Result<()> {
    let lines: String = records.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
    fs::write(path, lines).with_context(|| path.display().to_string())
}
