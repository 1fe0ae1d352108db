//! Who an event says it was: the right process, however short it lived and however it came to its socket.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::Connect;
use enforcer_tests::client::way;
use enforcer_tests::daemon::{Setup, connect};
use enforcer_tests::harness::{Test, test};

/// An emulated machine takes a second for a dozen of them.
const QUICK: u32 = 10_000;
const QUICK_EMULATED: u32 = 1_000;
/// Groups that the short-lived processes are spread over: each is removed when its process is gone.
const UNITS: u32 = 64;
const TICK: u64 = 10_000_000;
const DESTINATION: &str = "203.0.113.9";

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("fact_identity_is_right", identity),
        test("fact_arguments_only_when_asked_for", arguments),
        test("fact_thread_is_told_from_process", thread),
        test("fact_fork_with_inherited_socket_is_the_child", fork),
        test("fact_exec_between_socket_and_connect_is_the_new_executable", exec),
        test("fact_io_uring_worker_is_its_process", io_uring),
        test("fact_container_has_its_own_namespaces", container),
        test("fact_deleted_and_memfd_executables_are_named_so", deleted),
        test("fact_deep_path_is_whole_or_looked_up", deep),
        test("fact_short_lived_process_has_executable_and_unit_every_time", short_lived).patient(900),
    ]
}

/// Those that do not compare process ids: a container has its own.
pub(crate) fn native() -> Vec<Test> {
    let names = ["fact_arguments", "fact_deleted", "fact_short_lived"];
    tests().into_iter().filter(|test| names.iter().any(|name| test.name.starts_with(name))).collect()
}

/// What `vmtests quick ADDRESS CGROUP` does: joins the group, connects, ends when its standard input does.
pub(crate) fn quick(address: &str, cgroup: &str) -> Result<()> {
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").context("joining")?;
    UdpSocket::bind("0.0.0.0:0")?.connect((address, 9))?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// Runs a Python program that connects to DESTINATION, port `port`; gives its output and the event.
fn python(setup: &Setup, port: u16, script: &str) -> Result<(String, Connect)> {
    let output = Command::new("python3").args(["-c", &script.replace("PORT", &port.to_string())]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success(), "python: {output:?}");
    let event = setup.event("python's connect", |event| event.dst_port == port)?;
    Ok((said, event))
}

/// `key=value` words.
fn words(said: &str) -> HashMap<&str, &str> {
    said.split_whitespace().filter_map(|word| word.split_once('=')).collect()
}

const IDENTITY: &str = "
import os, socket
def start(pid): return open(f'/proc/{pid}/stat').read().rsplit(')')[-1].split()[19]
open('/proc/self/loginuid', 'w').write('4711')
os.setresgid(1, 1, 1); os.setresuid(1, 1, 1)
s = socket.socket(type=socket.SOCK_DGRAM)
s.connect(('203.0.113.9', PORT))
print(f'pid={os.getpid()} ppid={os.getppid()} start={start(\"self\")} parent={start(os.getppid())}')
print(f'net={os.stat(\"/proc/self/ns/net\").st_ino} exe={os.path.realpath(\"/proc/self/exe\")}')
";

fn identity() -> Result<()> {
    let setup = super::setup("")?;
    let _daemon = setup.start()?;
    let unit = own_cgroup("enforcer-test.service")?;
    let join = format!("open('{}/cgroup.procs', 'w').write('0')\n", unit.path.display());
    let (said, event) = python(&setup, 1001, &(join + IDENTITY))?;
    let said = words(&said);
    let is = |key: &str, value: u64| said.get(key).is_some_and(|word| *word == value.to_string());
    let who = &event.process;
    ensure!(
        is("pid", who.pid.into()) && who.tid == who.pid && is("ppid", who.ppid.into()),
        "{event:?} {said:?}"
    );
    let start = who.process_start.context("no start of the process")?;
    ensure!(is("start", start / TICK) && who.thread_start == Some(start), "{event:?} {said:?}");
    ensure!(is("parent", who.parent_start.context("no start of the parent")? / TICK), "{event:?} {said:?}");
    ensure!((who.uid, who.gid) == (1, 1), "{event:?}");
    ensure!(who.user.as_deref() == Some("daemon") && who.group.as_deref() == Some("daemon"), "{event:?}");
    ensure!(who.login_uid == Some(4711), "{event:?}");
    ensure!(is("net", who.net_namespace.context("no network namespace")?.into()), "{event:?} {said:?}");
    ensure!(who.executable.as_deref() == said.get("exe").copied(), "{event:?} {said:?}");
    ensure!(who.unit.as_deref() == Some("enforcer-test.service"), "{event:?}");
    ensure!(who.cgroup.as_deref() == Some(&unit.shown()), "{event:?}");
    ensure!(who.arguments.is_none() && who.container_id.is_none(), "{event:?}");
    ensure!(event.family == "inet" && event.socket_type.as_deref() == Some("dgram"), "{event:?}");
    ensure!(event.no_dns && event.names.is_empty() && event.sequence > 0 && event.count == 1, "{event:?}");
    Ok(())
}

fn arguments() -> Result<()> {
    let setup = super::setup("arguments = true")?;
    let _daemon = setup.start()?;
    let script = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('203.0.113.9', PORT))";
    let (_, event) = python(&setup, 1002, script)?;
    let want = ["python3", "-c", &script.replace("PORT", "1002")];
    ensure!(event.process.arguments.as_deref().is_some_and(|told| told == want), "{event:?}");
    let long = format!("{script}#{}", "x".repeat(5000));
    let (_, event) = python(&setup, 1003, &long)?;
    let told = event.process.arguments.context("no arguments")?;
    let last = told.last().context("none")?;
    ensure!(told.len() == 3 && last.ends_with("xxx...") && last.len() < 1024, "{told:?}");
    Ok(())
}

fn thread() -> Result<()> {
    let setup = super::setup("")?;
    let _daemon = setup.start()?;
    let script = "
import os, socket, threading, time
def work():
    open('/proc/thread-self/comm', 'w').write('worker')
    socket.socket(type=socket.SOCK_DGRAM).connect(('203.0.113.9', PORT))
    print(f'pid={os.getpid()} tid={threading.get_native_id()}')
time.sleep(0.1)
t = threading.Thread(target=work); t.start(); t.join()
";
    let (said, event) = python(&setup, 1004, script)?;
    let (said, who) = (words(&said), &event.process);
    ensure!(said["pid"] == who.pid.to_string() && said["tid"] == who.tid.to_string(), "{event:?} {said:?}");
    ensure!(who.pid != who.tid && who.comm == "worker", "{event:?}");
    ensure!(who.thread_start > who.process_start && who.process_start.is_some(), "{event:?}");
    ensure!(who.executable.as_deref().is_some_and(|path| path.contains("/python3")), "{event:?}");
    Ok(())
}

fn fork() -> Result<()> {
    let setup = super::setup("")?;
    let _daemon = setup.start()?;
    let script = "
import os, socket
s = socket.socket(type=socket.SOCK_DGRAM)
child = os.fork()
if child == 0:
    s.connect(('203.0.113.9', PORT))
    os._exit(0)
os.waitpid(child, 0)
print(f'pid={child} ppid={os.getpid()}')
";
    let (said, event) = python(&setup, 1005, script)?;
    let (said, who) = (words(&said), &event.process);
    ensure!(said["pid"] == who.pid.to_string() && said["ppid"] == who.ppid.to_string(), "{event:?} {said:?}");
    ensure!(who.parent_start < who.process_start && who.parent_start.is_some(), "{event:?}");
    Ok(())
}

fn exec() -> Result<()> {
    let setup = super::setup("")?;
    let _daemon = setup.start()?;
    let other = setup.directory.join("other-python");
    fs::copy(fs::canonicalize("/usr/bin/python3")?, &other)?;
    let script = format!(
        "
import os, socket
s = socket.socket(type=socket.SOCK_DGRAM); s.set_inheritable(True)
print(f'pid={{os.getpid()}}', flush=True)
os.execv('{}', ['x', '-c', 'import socket; socket.socket(fileno=' + str(s.fileno()) + ').connect((\"203.0.113.9\", PORT))'])
",
        other.display()
    );
    let (said, event) = python(&setup, 1006, &script)?;
    ensure!(words(&said)["pid"] == event.process.pid.to_string(), "{event:?} {said:?}");
    ensure!(event.process.executable.as_deref() == other.to_str(), "{event:?}");
    ensure!(event.process.comm == "other-python", "{event:?}");
    Ok(())
}

fn io_uring() -> Result<()> {
    let setup = super::setup("")?;
    let _daemon = setup.start()?;
    let attempt = way("io_uring_connect_worker").context("no such way")?.attempt;
    // Nobody listens: it is about who asked.
    let _ = attempt((DESTINATION.parse::<IpAddr>()?, 1007).into(), b"x");
    let event = setup.event("the worker's connect", |event| event.dst_port == 1007)?;
    let who = &event.process;
    ensure!(who.comm.starts_with("iou-wrk-"), "not done by a worker: {event:?}");
    ensure!(who.pid == std::process::id() && who.tid != who.pid, "{event:?}");
    ensure!(who.executable.as_deref() == std::env::current_exe()?.to_str(), "{event:?}");
    ensure!(who.cgroup.as_deref() == Some("/test-fact_io_uring_worker_is_its_process"), "{event:?}");
    Ok(())
}

/// What container engines do: namespaces of its own, a root of its own, a group that is named after it.
fn container() -> Result<()> {
    let setup = super::setup("")?;
    let _daemon = setup.start()?;
    let id = "0123456789abcdef".repeat(4);
    let group = own_cgroup(&format!("libpod-{id}.scope"))?;
    let root = setup.directory.join("root");
    fs::create_dir_all(&root)?;
    let client = setup.directory.join("client.py");
    fs::write(
        &client,
        "import os, socket\n\
         socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 1008))\n\
         print(os.stat('/proc/self/ns/net').st_ino, os.getpid())\n",
    )?;
    // A bind mount of everything, pivoted to: paths inside are as the container sees them.
    let script = format!(
        "echo $$ > {group}/cgroup.procs
exec unshare --user --map-root-user --mount --net --pid --fork --mount-proc sh -ec '
ip link set lo up
mount --rbind / {root}; cd {root}; pivot_root . tmp; cd /
exec python3 {client}'",
        group = group.path.display(),
        root = root.display(),
        client = client.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (net, pid) = said.split_once(' ').with_context(|| format!("{output:?}"))?;
    let event = setup.event("the container's connect", |event| event.dst_port == 1008)?;
    let who = &event.process;
    ensure!(who.net_namespace.is_some_and(|told| told.to_string() == net), "{event:?} {said}");
    let own = fs::metadata("/proc/self/ns/net")?.ino();
    ensure!(net != own.to_string(), "the container shares our network");
    ensure!(pid == "1" && who.pid > 1, "the event has the host's number: {event:?} {said}");
    ensure!(who.container_id.as_deref() == Some(&id), "{event:?}");
    ensure!(who.uid == 0, "{event:?}");
    let executable = fs::canonicalize("/usr/bin/python3")?;
    ensure!(who.executable.as_deref() == executable.to_str(), "as the container sees it: {event:?}");
    Ok(())
}

fn deleted() -> Result<()> {
    let setup = super::setup("")?;
    let _daemon = setup.start()?;
    let other = setup.directory.join("gone-python");
    fs::copy(fs::canonicalize("/usr/bin/python3")?, &other)?;
    let script = format!(
        "import os, socket; os.unlink('{}'); socket.socket(type=socket.SOCK_DGRAM).connect(('203.0.113.9', 1009))",
        other.display()
    );
    let status = Command::new(&other).args(["-c", &script]).status()?;
    ensure!(status.success(), "{status}");
    let event = setup.event("the deleted program's connect", |event| event.dst_port == 1009)?;
    let want = format!("{} (deleted)", other.display());
    ensure!(event.process.executable.as_deref() == Some(&want), "{event:?}");

    let script = "
import os
fd = os.memfd_create('hidden')
os.write(fd, open('/usr/bin/python3', 'rb').read())
os.execv(f'/proc/self/fd/{fd}', ['x', '-c', 'import socket; socket.socket(type=socket.SOCK_DGRAM).connect((\"203.0.113.9\", PORT))'])
";
    let (_, event) = python(&setup, 1010, script)?;
    ensure!(event.process.executable.as_deref() == Some("/memfd:hidden (deleted)"), "{event:?}");
    Ok(())
}

/// More than fits into the report is looked up; never is a part given out for the whole.
fn deep() -> Result<()> {
    let setup = super::setup("")?;
    let _daemon = setup.start()?;
    let group = own_cgroup("deep")?;
    for (levels, length) in [(40, 40), (14, 250), (80, 20)] {
        let mut dir = setup.directory.clone();
        for _ in 0..levels {
            dir.push("d".repeat(length));
        }
        fs::create_dir_all(&dir)?;
        let other = dir.join("client");
        fs::copy(std::env::current_exe()?, &other)?;
        let address = Ipv4Addr::new(198, 18, 9, levels);
        let mut child = Command::new(&other)
            .args(["quick", &address.to_string(), &group.path.to_string_lossy()])
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("{levels} levels"))?;
        let event = setup.event("the deep program's connect", |event| event.dst_ip == address);
        child.kill()?; // it stayed until it was looked up
        child.wait()?;
        let event = event.with_context(|| format!("{levels} levels"))?;
        ensure!(event.process.executable.as_deref() == other.to_str(), "{levels} levels: {event:?}");
    }
    Ok(())
}

fn short_lived() -> Result<()> {
    let setup = super::setup("")?;
    let daemon = setup.start()?;
    let tries = if super::is_native() { QUICK } else { QUICK_EMULATED };
    let own = std::env::current_exe()?;
    let programs: Vec<PathBuf> = (0..2).map(|n| setup.directory.join(format!("quick-{n}"))).collect();
    for program in &programs {
        fs::copy(&own, program)?;
    }
    let address = |n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + n);
    let unit = |n: u32| format!("quick-{}.service", n % UNITS);
    for n in 0..tries {
        let group = own_cgroup(&unit(n))?;
        let program = &programs[n as usize % programs.len()];
        let status = Command::new(program)
            .args(["quick", &address(n).to_string(), &group.path.to_string_lossy()])
            .stdin(Stdio::null())
            .status()?;
        ensure!(status.success(), "{n}: {status}");
        drop(group); // removed before the daemon had a chance to look
    }
    super::events::caught_up(&setup, tries.into())?;
    daemon.stop()?;
    let events = setup.events()?;
    let mut right = 0;
    for event in events.iter().filter_map(connect).filter(|event| event.dst_port == 9) {
        let IpAddr::V4(v4) = event.dst_ip else { continue };
        let n = u32::from(v4) - u32::from(Ipv4Addr::new(198, 18, 0, 0));
        let program = programs[n as usize % programs.len()].to_str();
        let who = &event.process;
        ensure!(
            who.executable.as_deref() == program && who.unit.as_deref() == Some(&unit(n)),
            "{n}: {event:?}"
        );
        right += 1;
    }
    println!("measured: {right} of {tries} short-lived processes have the right executable and unit");
    ensure!(right == tries, "{right} of {tries}");
    Ok(())
}

/// A control group below the test's own; dropped: removed.
pub(crate) struct Group {
    pub(crate) path: PathBuf,
}

impl Group {
    /// As events show it.
    pub(crate) fn shown(&self) -> String {
        self.path.to_string_lossy().trim_start_matches("/sys/fs/cgroup").to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What is still in it ends with the test.
        let _ = fs::remove_dir(&self.path);
    }
}

pub(crate) fn own_cgroup(name: &str) -> Result<Group> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?.to_owned();
    let path = Path::new("/sys/fs/cgroup").join(own).join(name);
    fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(Group { path })
}
