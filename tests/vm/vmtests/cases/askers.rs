//! Who asked for a name, as events say it: seen from who connects.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::Asker;
use enforcer_tests::daemon::Setup;
use enforcer_tests::harness::{Test, test};
use enforcer_tests::network::{RESOLVER_V4, RESOLVER_V6};
use enforcer_tests::replaced::Replaced;
use enforcer_tests::resolver::{Place, Resolver};

use super::facts::{Group, own_cgroup};
use super::setup;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("asked_by_is_the_nearest_of_those_who_asked", nearest),
        test("asked_by_names_the_application_behind_a_local_resolver", behind_a_resolver),
    ]
}

/// Asks for `name` in every way of a real client, and connects to `to`.
const CLIENT: &str = "
import os, socket, subprocess, sys, threading
name, to, v4, v6 = sys.argv[1], (sys.argv[2], int(sys.argv[3])), sys.argv[4], sys.argv[5]
labels = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.'))
query = os.urandom(2) + bytes([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + labels + bytes([0, 0, 1, 0, 1])
def udp(server=v4, connected=True):
    s = socket.socket(socket.AF_INET6 if ':' in server else socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(20)
    if connected:
        s.connect((server, 53))
        s.send(query)
    else:
        s.sendto(query, (server, 53))
    assert s.recv(512)[:2] == query[:2]
def tcp():
    s = socket.create_connection((v4, 53), 20)
    s.sendall(len(query).to_bytes(2, 'big') + query)
    assert s.recv(512)[2:4] == query[:2]
def libc():
    socket.getaddrinfo(name, 1)
def getent():
    subprocess.run(['getent', 'ahostsv4', name], check=True)
def go():
    socket.socket(type=socket.SOCK_DGRAM).connect(to)
def child(what):
    if os.fork() == 0:
        what()
        os._exit(0)
    assert os.wait()[1] == 0
def thread(what):
    t = threading.Thread(target=what)
    t.start()
    t.join()
def again(what):
    os.execv(sys.executable, ['python3', '-c', sys.orig_argv[2].rpartition('\\n')[0] + '\\n' + what, *sys.argv[1:]])
";

/// A name, its address, and what connects to it.
struct Scene<'a> {
    setup: &'a Setup,
    port: u16,
}

impl Scene<'_> {
    /// What the event of a process in that control group says that does this. `row`: of the name.
    fn play(&mut self, group: &Group, row: u8, what: &str) -> Result<Option<Asker>> {
        self.port += 1;
        let script = format!("{CLIENT}{what}");
        let to = address(row).to_string();
        let output = inside(&group.path, "python3")
            .args(["-c", &script, &name(row), &to, &self.port.to_string()])
            .args([RESOLVER_V4.to_string(), RESOLVER_V6.to_string()])
            .output()?;
        ensure!(output.status.success(), "{what}: {output:?}");
        let event = self.setup.event(what, |event| event.dst_port == self.port)?;
        ensure!(event.results == [name(row)] && event.names.len() == 1, "{what}: {event:?}");
        let cgroup = event.process.cgroup.as_deref().unwrap_or_default();
        // Natively, what is the root here is no root to the kernel.
        ensure!(cgroup.ends_with(&group.shown()), "{what}: {event:?}");
        Ok(event.names[0].asked_by)
    }
}

fn name(row: u8) -> String {
    format!("n{row}.forwarded.example")
}

fn address(row: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, row))
}

/// The program, in that control group before it opens a socket.
fn inside(group: &Path, program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec \"$@\""]).arg(group).arg(program);
    command
}

fn far(rows: u8) -> Result<Resolver> {
    let names: Vec<String> = (0..rows).map(name).collect();
    let records: Vec<_> = (0..).zip(&names).map(|(row, name)| (name.as_str(), address(row))).collect();
    Resolver::start(&records, &["--local-ttl=60"])
}

fn nearest() -> Result<()> {
    // Who asks and connects, in one process or in several.
    let rows = [
        ("udp(); go()", Asker::Process),
        ("udp(connected=False); go()", Asker::Process),
        ("udp(v6); go()", Asker::Process),
        ("udp(v6, connected=False); go()", Asker::Process),
        ("tcp(); go()", Asker::Process),
        ("libc(); go()", Asker::Process),
        ("thread(udp); go()", Asker::Process),
        ("udp(); thread(go)", Asker::Process),
        ("udp(); again('go()')", Asker::Process),
        ("udp(); child(go)", Asker::Cgroup),
        ("child(tcp); go()", Asker::Cgroup),
        ("getent(); go()", Asker::Cgroup),
    ];
    let _resolver = far(rows.len() as u8)?;
    let (asks, other) = (own_cgroup("asks")?, own_cgroup("other")?);
    let setup = setup("")?;
    let _daemon = setup.start()?;
    let mut scene = Scene { setup: &setup, port: 1000 };
    for (row, (what, want)) in (0..).zip(rows) {
        let seen = scene.play(&asks, row, what)?;
        ensure!(seen == Some(want), "{what}: {seen:?}");
        let seen = scene.play(&other, row, "go()")?;
        ensure!(seen == Some(Asker::Host), "{what}, then another control group: {seen:?}");
    }
    // The same answer, again and again within a second: each of those who asked is known.
    for (at, group) in [&other, &asks, &other, &asks].into_iter().enumerate() {
        let seen = scene.play(group, 0, "udp(); go()")?;
        ensure!(seen == Some(Asker::Process), "{at}: {seen:?}");
    }
    Ok(())
}

fn behind_a_resolver() -> Result<()> {
    let _far = far(3)?;
    let (asks, other, resolves) = (own_cgroup("asks")?, own_cgroup("other")?, own_cgroup("resolves")?);
    let local =
        Resolver::start_at(Place::Loopback, &[], &[&format!("--server=/forwarded.example/{RESOLVER_V4}")])?;
    std::fs::write(resolves.path.join("cgroup.procs"), local.pid().to_string()).context("moving dnsmasq")?;
    let _resolv = Replaced::new("/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    let setup = setup("")?;
    let _daemon = setup.start()?;
    let mut scene = Scene { setup: &setup, port: 2000 };
    let rows = [
        (&asks, "libc(); go()", Asker::Process),
        (&asks, "getent(); go()", Asker::Cgroup),
        // From its cache.
        (&asks, "libc(); go()", Asker::Process),
        (&other, "go()", Asker::Host),
        // The resolver's own question.
        (&resolves, "go()", Asker::Cgroup),
    ];
    for (at, (group, what, want)) in (0..).zip(rows) {
        let seen = scene.play(group, 1, what)?;
        ensure!(seen == Some(want), "{at} {what}: {seen:?}");
    }
    Ok(())
}
