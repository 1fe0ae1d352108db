//! A real dnsmasq on the far side, with the records that a test wants.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::network::{FAR, RESOLVER_V4, RESOLVER_V6};
use crate::wait;

/// Where a resolver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Across the veth.
    Far,
    /// On this side, at 127.0.0.1.
    Loopback,
}

impl Place {
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Far => RESOLVER_V4,
            Self::Loopback => Ipv4Addr::LOCALHOST,
        }
    }

    /// The program, to be started there.
    pub fn command(self, program: &str) -> Command {
        match self {
            Self::Far => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", FAR, program]);
                command
            }
            Self::Loopback => Command::new(program),
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
const REPLY_WAIT: Duration = Duration::from_millis(200);
const HOSTS: &str = "/run/vmtests-hosts";
/// Tells one version of the records from the next.
const MARK: &str = "generation.vmtests.example";

#[derive(Debug)]
pub struct Resolver {
    process: Child,
    hosts: PathBuf,
    place: Place,
    generation: u8,
}

/// What the resolver shall say besides its hosts: `--cname=…`, `--local-ttl=…`, as dnsmasq spells it.
pub type Options<'a> = &'a [&'a str];

impl Resolver {
    /// Started on the far side, and answering.
    pub fn start(records: &[(&str, IpAddr)], options: Options<'_>) -> Result<Self> {
        Self::start_at(Place::Far, records, options)
    }

    pub fn start_at(place: Place, records: &[(&str, IpAddr)], options: Options<'_>) -> Result<Self> {
        let hosts = PathBuf::from(HOSTS);
        write_hosts(&hosts, records, 1)?;
        let listen = match place {
            Place::Far => format!("{RESOLVER_V4},{RESOLVER_V6}"),
            Place::Loopback => Ipv4Addr::LOCALHOST.to_string(),
        };
        let process = place
            .command("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file="])
            .args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--log-facility=/dev/null"])
            .arg(format!("--listen-address={listen}"))
            .arg(format!("--addn-hosts={}", hosts.display()))
            .arg("--local=/example/")
            .args(options)
            .stdin(Stdio::null())
            .spawn()
            .context("starting dnsmasq")?;
        let resolver = Self { process, hosts, place, generation: 1 };
        resolver.wait_for_generation()?;
        Ok(resolver)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Other records from now on.
    pub fn replace(&mut self, records: &[(&str, IpAddr)]) -> Result<()> {
        self.generation += 1;
        write_hosts(&self.hosts, records, self.generation)?;
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP)?;
        self.wait_for_generation()
    }

    /// Asks by hand and often: `getaddrinfo` waits seconds for a server that is not up yet.
    fn wait_for_generation(&self) -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((self.place.address(), 53))?;
        socket.set_read_timeout(Some(REPLY_WAIT))?;
        wait::until("dnsmasq to answer with its newest records", PATIENCE, || {
            socket.send(&query(MARK))?;
            let mut reply = [0; 512];
            let length = socket.recv(&mut reply)?;
            // One A record: the address is the answer's end.
            Ok(reply[..length].ends_with(&mark(self.generation)).then_some(()))
        })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        // It has nothing to save, and a resolver that is gone already is no trouble.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The addresses of a name as every program here gets them: by glibc's `getaddrinfo`.
pub fn lookup(name: &str) -> Result<Vec<IpAddr>> {
    let mut addresses = (name, 0)
        .to_socket_addrs()
        .with_context(|| format!("looking up {name}"))?
        .map(|to| to.ip())
        .collect::<Vec<_>>();
    addresses.dedup();
    Ok(addresses)
}

/// A question for the IPv4 addresses of a name.
pub fn query(name: &str) -> Vec<u8> {
    question(name, A)
}

pub const A: u8 = 1;
pub const AAAA: u8 = 28;

/// A question for records of a type.
pub fn question(name: &str, kind: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0x46, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, kind, 0, 1]);
    packet
}

fn mark(generation: u8) -> [u8; 4] {
    [192, 0, 2, generation]
}

fn write_hosts(path: &Path, records: &[(&str, IpAddr)], generation: u8) -> Result<()> {
    let mut lines = format!("{} {MARK}\n", IpAddr::from(mark(generation)));
    lines.extend(records.iter().map(|(name, address)| format!("{address} {name}\n")));
    fs::write(path, lines).with_context(|| path.display().to_string())
}
