//! A network with a far side. The machine's own addresses are never denied, so the servers under test have
//! to be elsewhere: in another network namespace, behind a veth pair.
//!
//! The far side's served prefixes are `local` routes of other prefixes than the link's own; replies to the
//! near side would otherwise stay in the far namespace.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub const FAR: &str = "far";
/// Near end of the link: an address of the host under test.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
/// Far end: where the DNS server listens.
pub const RESOLVER_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
pub const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2);
/// Every address of these prefixes is answered by the far side.
pub const SERVED_V4: [&str; 4] = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15"];
pub const SERVED_V6: [&str; 2] = ["2001:db8::/32", "64:ff9b::/96"];

/// Both sides, from nothing. Done once a machine.
pub fn build() -> Result<()> {
    // The cloud kernels have it as a module; where it is built in, there is nothing to load.
    let _ = Command::new("modprobe").arg("veth").stderr(Stdio::null()).status();
    ip_batch(&[], &format!("netns add {FAR}\nlink add near type veth peer name far netns {FAR}\n"))?;
    let mut near = end("near", HOST_V4, HOST_V6);
    let mut far = end("far", RESOLVER_V4, RESOLVER_V6);
    far += "link set lo up\n";
    for prefix in SERVED_V4 {
        near += &format!("route add {prefix} via {RESOLVER_V4}\n");
        far += &format!("route add local {prefix} dev lo\n");
    }
    for prefix in SERVED_V6 {
        near += &format!("route add {prefix} via {RESOLVER_V6}\n");
        far += &format!("route add local {prefix} dev lo\n");
    }
    ip_batch(&["-n", FAR], &far)?;
    ip_batch(&[], &near)?;
    // Data in the SYN, in both directions and without a cookie: what the Fast Open tests are about.
    std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "5").context("client side of TCP Fast Open")?;
    in_far(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "515"))?
        .context("server side of TCP Fast Open")?;
    std::fs::write("/etc/resolv.conf", format!("nameserver {RESOLVER_V4}\noptions timeout:2 attempts:2\n"))?;
    Ok(())
}

/// Runs on a thread of its own inside the far namespace; sockets made there stay there.
pub fn in_far<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    let namespace = File::open(format!("/run/netns/{FAR}")).context("the far namespace")?;
    thread::scope(|scope| {
        let worker = scope.spawn(move || -> Result<T> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        });
        worker.join().map_err(|_| anyhow!("the worker in the far namespace panicked"))?
    })
}

fn end(device: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> String {
    // No duplicate address detection: it would take a second.
    format!("addr add {v4}/30 dev {device}\naddr add {v6}/64 dev {device} nodad\nlink set {device} up\n")
}

fn ip_batch(options: &[&str], lines: &str) -> Result<()> {
    let mut ip =
        Command::new("ip").args(options).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("ip")?;
    ip.stdin.take().context("ip's standard input")?.write_all(lines.as_bytes())?;
    ensure!(ip.wait()?.success(), "ip {options:?} -batch failed on:\n{lines}");
    Ok(())
}
