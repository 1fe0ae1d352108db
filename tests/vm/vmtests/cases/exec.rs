//! `enforcer exec`: one command under a policy of its own, and nothing left behind.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::server::Server;
use enforcer_tests::wait;

use super::{BAD, BAD_V4, GOOD, is_native, resolver};

const SOON: Duration = Duration::from_secs(20);
/// At once. Each has programs and maps of its own in the kernel, which an emulated machine takes long to load.
const MANY: usize = 10;
const MANY_NATIVELY: usize = 100;
const LOADED: Duration = Duration::from_secs(120);

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("exec_refuses_tells_and_exits_as_the_command", refuses),
        test("exec_default_deny_lets_pass_what_is_allowed", default_deny),
        test("exec_holds_for_children_and_python", children),
        test("exec_is_nested", nested),
        test("exec_many_at_once", many).patient(300),
        test("exec_killed_leaves_nothing_behind", killed),
        test("exec_ends_what_the_command_left_running", left_running),
        test("exec_of_nonsense_runs_nothing", nonsense),
    ]
}

pub(super) fn exec(arguments: &[&str]) -> Command {
    let mut command = Command::new("/payload/enforcer");
    command.arg("exec").args(arguments).stdin(Stdio::null());
    command
}

pub(super) fn run(arguments: &[&str]) -> Result<(i32, String, String)> {
    let Output { status, stdout, stderr } = exec(arguments).output().context("enforcer exec")?;
    let code = status.code().context("killed")?;
    Ok((code, String::from_utf8(stdout)?, String::from_utf8(stderr)?))
}

fn url(name: &str, server: &Server) -> String {
    format!("http://{name}:{}/", server.port())
}

/// Groups and programs of ours.
fn traces() -> Result<Vec<String>> {
    let groups = Command::new("find").args(["/sys/fs/cgroup", "-name", "enforcer-exec-*"]).output()?;
    Ok(String::from_utf8(groups.stdout)?.lines().map(str::to_owned).collect())
}

pub(super) fn nothing_is_left() -> Result<()> {
    wait::until("the control groups to go", SOON, || Ok(traces()?.is_empty().then_some(())))?;
    let pins = fs::read_dir("/sys/fs/bpf")?.collect::<Result<Vec<_>, _>>()?;
    // The kernel's own end with `.debug`.
    let pins: Vec<_> = pins.iter().map(|pin| pin.path()).filter(|pin| pin.extension().is_none()).collect();
    ensure!(pins.is_empty(), "something is pinned: {pins:?}");
    Ok(())
}

fn refuses() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let get = ["curl", "-sS", "-4", "--max-time", "10"];
    let with = |more: &[&str], name: &str| {
        let url = url(name, &server);
        run(&[more, &["--"], &get, &[url.as_str()]].concat())
    };
    let (code, out, told) = with(&["--deny", "bad.*"], GOOD)?;
    ensure!(code == 0 && out == "ok\n" && told.contains("reached 203.0.113.10"), "{code} {out} {told}");
    ensure!(told.contains(" good.example") && told.contains(" 0 refused"), "{told}");
    let (code, out, told) = with(&["--deny", "bad.*"], BAD)?;
    ensure!(code == 7 && out.is_empty(), "curl's exit code for a refused connect is 7: {code} {out} {told}");
    ensure!(told.contains(&format!("refused {BAD_V4}:{} bad.example by --deny", server.port())), "{told}");
    let (code, ..) = with(&["--deny", "*", "--allow", "bad.example"], BAD)?;
    ensure!(code == 0, "an exception did not hold");
    // By address, without a name.
    let (code, _, told) = with(&["--deny", "203.0.113.0/24"], &BAD_V4.to_string())?;
    ensure!(code == 7 && told.contains("(no name) by --deny"), "{code} {told}");
    for (more, want) in [(&[][..], 0), (&["--fail-on-deny"][..], 1)] {
        let shell = format!("curl -s --max-time 10 {}; exit 0", url(BAD, &server));
        let (code, ..) = run(&[more, &["--deny", BAD, "--", "sh", "-c", &shell]].concat())?;
        ensure!(code == want, "{more:?}: {code}");
    }
    let (code, _, told) = run(&["--quiet", "--", "sh", "-c", "pwd; kill -9 $$"])?;
    ensure!(code == 137 && told.is_empty(), "{code} {told}");
    let (_, out, _) = run(&["-q", "--", "pwd"])?;
    ensure!(out.trim() == std::env::current_dir()?.display().to_string(), "another directory: {out}");
    // This process is not in the group.
    ensure!(
        Command::new("curl").args(["-sS", "--max-time", "10", &url(BAD, &server)]).output()?.status.success(),
        "refused outside of exec"
    );
    nothing_is_left()
}

/// Only what is named, on the command line or in files; loopback and DNS without a word.
fn default_deny() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let policies = "/run/exec-policies";
    fs::create_dir_all(policies)?;
    fs::write(
        format!("{policies}/a.toml"),
        format!("[[rule]]\nname = \"good\"\naction = \"allow\"\nhosts = [\"{GOOD}\"]\n"),
    )?;
    let get = |more: &[&str], url: &str| {
        run(&[more, &["--default", "deny", "--", "curl", "-sS", "-4", "--max-time", "10", url]].concat())
    };
    for allowed in [["--allow", GOOD], ["--policies", policies], ["--allow", "203.0.113.10"]] {
        let (code, out, told) = get(&allowed, &url(GOOD, &server))?;
        ensure!(code == 0 && out == "ok\n" && told.contains(" 0 refused"), "{allowed:?}: {code} {told}");
        let (code, out, told) = get(&allowed, &url(BAD, &server))?;
        ensure!(code == 7 && out.is_empty(), "{allowed:?}: {code} {out} {told}");
        let line = format!("refused {BAD_V4}:{} bad.example by default", server.port());
        ensure!(told.contains(&line), "{allowed:?}: {told}");
        // By address: no name leads there.
        let (code, _, told) = get(&allowed, &format!("http://{BAD_V4}:{}/", server.port()))?;
        ensure!(code == 7 && told.contains("(no name) by default"), "{allowed:?}: {code} {told}");
    }
    let local = TcpListener::bind("127.0.0.1:0")?;
    let connect = format!(
        "import socket; socket.create_connection(('127.0.0.1', {}), timeout=5); print('local')",
        local.local_addr()?.port()
    );
    let (code, out, told) = run(&["--default", "deny", "--", "python3", "-c", &connect])?;
    ensure!(code == 0 && out == "local\n", "{code} {out} {told}");
    // Without a rule, and inside of one that would let it pass.
    let inner = ["/payload/enforcer", "exec", "-q", "--", "curl", "-sS", "-4", "--max-time", "10"];
    let url = url(GOOD, &server);
    let (code, ..) = run(&[&["-q", "--default", "deny", "--"], &inner[..], &[&url]].concat())?;
    ensure!(code == 7, "what stands inside opened what is closed outside: {code}");
    let (code, _, told) = run(&["--default", "maybe", "--", "true"])?;
    ensure!(code == 2 && told.contains("maybe"), "{code} {told}");
    nothing_is_left()
}

fn children() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let script = format!(
        "import socket, subprocess, sys\n\
         code = subprocess.run([sys.executable, '-c', \"import socket; socket.create_connection(('{BAD}', {port}), timeout=5)\"]).returncode\n\
         assert code == 1, code\n\
         socket.create_connection(('{GOOD}', {port}), timeout=5)\n\
         try:\n    socket.create_connection(('{BAD}', {port}), timeout=5)\n\
         except PermissionError:\n    sys.exit(3)\n",
        port = server.port()
    );
    let (code, _, told) = run(&["--deny", BAD, "--", "python3", "-c", &script])?;
    ensure!(code == 3, "{code} {told}");
    nothing_is_left()
}

fn nested() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let inner = |denied: &str, name: &str| -> Result<i32> {
        let url = url(name, &server);
        let inner = [
            "/payload/enforcer",
            "exec",
            "-q",
            "--deny",
            denied,
            "--",
            "curl",
            "-sS",
            "-4",
            "--max-time",
            "10",
            &url,
        ];
        Ok(run(&[&["-q", "--deny", BAD, "--"], &inner[..]].concat())?.0)
    };
    // Each holds, the outer one also for what the inner one would let through.
    ensure!(inner("other.example", BAD)? == 7, "the outer rules do not hold inside");
    ensure!(inner(GOOD, GOOD)? == 7, "the inner rules do not hold");
    ensure!(inner("other.example", GOOD)? == 0, "what nobody denies is refused");
    nothing_is_left()
}

fn many() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let script = format!(
        "read _; curl -s -4 --max-time 20 {} >/dev/null; test $? = 7 || exit 9; curl -s -4 --max-time 20 {}",
        url(BAD, &server),
        url(GOOD, &server)
    );
    let many = if is_native() { MANY_NATIVELY } else { MANY };
    let children: Vec<Child> = (0..many)
        .map(|_| {
            exec(&["-q", "--deny", BAD, "--", "sh", "-c", &script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    wait::until("all to run at once", LOADED, || Ok((traces()?.len() == many).then_some(())))?;
    for (n, mut child) in children.into_iter().enumerate() {
        if n % 2 == 1 {
            child.kill()?;
            child.wait()?;
            continue;
        }
        // Its input ends.
        let output = child.wait_with_output()?;
        ensure!(output.status.success() && output.stdout == b"ok\n", "{output:?}");
    }
    nothing_is_left()
}

fn first_line(child: &mut Child) -> Result<String> {
    let mut line = Vec::new();
    let out = child.stdout.as_mut().context("no output")?;
    let mut byte = [0];
    while out.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line)?)
}

fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// A child of the command, which nobody else would end, and which tries what is denied all the while.
fn killed() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let script = format!(
        "setsid sh -c 'while :; do curl -s -4 --max-time 2 {}; done' >/tmp/exec-reached & echo $!; sleep 1000",
        url(BAD, &server)
    );
    let mut child = exec(&["--deny", BAD, "--", "sh", "-c", &script]).stdout(Stdio::piped()).spawn()?;
    let grandchild = first_line(&mut child)?;
    ensure!(runs(&grandchild) && traces()?.len() == 1, "nothing runs");
    child.kill()?;
    child.wait()?;
    nothing_is_left()?;
    ensure!(!runs(&grandchild), "{grandchild} still runs");
    // Enforced up to its end.
    ensure!(fs::read("/tmp/exec-reached")?.is_empty(), "it got through");
    Ok(())
}

fn left_running() -> Result<()> {
    let mut child = exec(&["-q", "--", "sh", "-c", "setsid sleep 1000 >/dev/null & echo $!"])
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = first_line(&mut child)?;
    ensure!(child.wait()?.success(), "not as the command");
    ensure!(!runs(&pid), "{pid} still runs, and nothing is enforced");
    nothing_is_left()
}

fn nonsense() -> Result<()> {
    let (code, _, told) = run(&["--", "/nowhere/nothing"])?;
    ensure!(code == 2 && told.contains("cannot run /nowhere/nothing"), "{code} {told}");
    let (code, out, told) = run(&["--deny", "a b", "--", "echo", "ran"])?;
    ensure!(
        code == 1 && out.is_empty() && told.contains("error: --deny:4:10: `a b` has a space"),
        "{code} {out} {told}"
    );
    nothing_is_left()
}
