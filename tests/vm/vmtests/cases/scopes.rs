//! Rules with a scope: who is in it, from the first connect on, and who only looks as if.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::daemon::{SOON, Setup};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::wait;
use rustix::process::Signal;

use super::{is_native, setup};

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = vec![
        test("scope_by_user_and_groups", accounts),
        test("scope_by_executable", executables),
        test("scope_lists_are_all_to_hold", all_lists),
    ];
    if !is_native() {
        tests.push(test("scope_by_unit_and_control_group", cgroups));
        tests.push(test("scope_is_the_same_by_cgroup_hooks", by_cgroup_hooks));
    }
    tests
}

const TO: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 7);
const PORT: u16 = 443;
const REFUSED: i32 = 77;

/// `vmtests probe`: connects once, and says by its exit code whether it was refused.
pub(crate) fn probe() -> Result<()> {
    match UdpSocket::bind("0.0.0.0:0")?.connect(SocketAddr::new(TO.into(), PORT)) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => std::process::exit(REFUSED),
        Err(error) => Err(error).context("the probe's connect"),
    }
}

fn deny(scope: &str) -> String {
    format!(
        "[[rule]]\nname = \"scoped\"\naction = \"deny\"\nnetworks = [\"198.18.7.0/24\"]\n[rule.scope]\n{scope}\n"
    )
}

/// The program as it was given to us, or a copy.
fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.arg("probe").stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn itself() -> Command {
    program(Path::new("/proc/self/exe"))
}

fn is_refused(command: &mut Command) -> Result<bool> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    match status.code() {
        Some(0) => Ok(false),
        Some(REFUSED) => Ok(true),
        _ => bail!("{command:?} ended with {status}"),
    }
}

fn expect(what: &str, command: &mut Command, want: bool) -> Result<()> {
    let got = is_refused(command)?;
    ensure!(got == want, "{what} was {}refused", if got { "" } else { "not " });
    Ok(())
}

/// With this user, group, and supplementary groups.
fn as_whom(uid: u32, gid: u32, groups: &[u32]) -> Command {
    let groups = groups.to_vec();
    let mut command = itself();
    let become_it = move || {
        // SAFETY: each of these reads the arguments and nothing else.
        let done = unsafe {
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
                && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: system calls only, between fork and exec.
    unsafe { command.pre_exec(become_it) };
    command
}

/// Loads another policy and waits until it is in force.
fn change(setup: &Setup, daemon: &enforcer_tests::daemon::Daemon<'_>, policy: &str) -> Result<()> {
    let before = setup.status()?.policy.loads;
    setup.write_policy("rules.toml", policy)?;
    daemon.signal(Signal::HUP)?;
    wait::until("the policy to be loaded", SOON, || {
        let status = setup.status()?.policy;
        ensure!(status.error.is_none(), "{:?}", status.error);
        Ok((status.loads > before).then_some(()))
    })
}

fn accounts() -> Result<()> {
    accounts_by(&setup("")?)
}

fn by_cgroup_hooks() -> Result<()> {
    accounts_by(&Setup::new("layer = \"cgroup\"")?)?;
    executables_by(&Setup::new("layer = \"cgroup\"")?)?;
    cgroups_by(&Setup::new("layer = \"cgroup\"")?)
}

fn accounts_by(setup: &Setup) -> Result<()> {
    setup.write_policy("rules.toml", &deny("users = [1234, \"nobody\"]"))?;
    let daemon = setup.start()?;
    expect("root", &mut itself(), false)?;
    expect("a user by number", &mut as_whom(1234, 1, &[]), true)?;
    expect("a user by name", &mut as_whom(65534, 1, &[]), true)?;
    expect("another user", &mut as_whom(1235, 1234, &[1234]), false)?;
    change(setup, &daemon, &deny("groups = [4321]"))?;
    expect("root", &mut itself(), false)?;
    expect("a group", &mut as_whom(1, 4321, &[]), true)?;
    expect("a supplementary group", &mut as_whom(1, 1, &[5, 4321, 9]), true)?;
    let many: Vec<u32> = (0..3000).map(|group| group + 2000).collect();
    expect("one of many groups", &mut as_whom(1, 1, &many), true)?;
    expect("a user of that number", &mut as_whom(4321, 1, &[4320, 4322]), false)?;
    // Nobody has this name; the rule is of no use, but harms nobody.
    change(setup, &daemon, &deny("users = [\"no-such-user\"]"))?;
    expect("root", &mut itself(), false)?;
    expect("somebody", &mut as_whom(1234, 1, &[]), false)?;
    daemon.stop()
}

fn copy(to: &Path) -> Result<()> {
    let beside = to.with_extension("new");
    fs::copy("/proc/self/exe", &beside).with_context(|| beside.display().to_string())?;
    fs::rename(&beside, to).with_context(|| to.display().to_string())
}

fn executables() -> Result<()> {
    executables_by(&setup("")?)
}

fn executables_by(setup: &Setup) -> Result<()> {
    let directory = PathBuf::from("/run/enforcer-scope");
    fs::create_dir_all(directory.join("deep/er"))?;
    let (here, elsewhere) = (directory.join("deep/er/prog"), directory.join("prog"));
    copy(&here)?;
    copy(&elsewhere)?;
    let interpreter = directory.join("shell");
    fs::copy("/bin/sh", &interpreter)?;
    setup.write_policy(
        "rules.toml",
        &deny(&format!("executables = [\"{}\", \"{}\"]", here.display(), interpreter.display())),
    )?;
    let daemon = setup.start()?;
    expect("the executable", &mut program(&here), true)?;
    expect("a copy elsewhere", &mut program(&elsewhere), false)?;
    expect("the executable by a link", &mut program(&link(&here, &directory.join("link"))?), true)?;
    // As an upgrade does, with nobody there to notice.
    daemon.signal(Signal::STOP)?;
    copy(&here)?;
    expect("the replaced executable", &mut program(&here), true)?;
    daemon.signal(Signal::CONT)?;
    let mut shell = Command::new("sh");
    let command = format!("{} probe; code=$?; exit $code", here.display());
    expect("a child of somebody else", shell.args(["-c", command.as_str()]), true)?;
    // The connect is judged by who makes it, not by who started him: `units` and `cgroups` are for that.
    for script in
        [format!("exec {} probe", elsewhere.display()), format!("{} probe; exit $?", elsewhere.display())]
    {
        let mut scoped = Command::new(&interpreter);
        expect("what a scoped executable starts", scoped.args(["-c", script.as_str()]), false)?;
    }
    // In a namespace of one's own anything can stand at any path.
    let script = format!("mount --bind {0} {1} && exec {1} probe", elsewhere.display(), here.display());
    let mut private = Command::new("unshare");
    expect("another mount namespace", private.args(["-m", "sh", "-c", script.as_str()]), true)?;
    let mut private = Command::new("unshare");
    expect(
        "an unprivileged mount namespace",
        private.args(["-U", "-r", "-m", "sh", "-c", script.as_str()]),
        false,
    )?;
    daemon.stop()
}

fn link(to: &Path, at: &Path) -> Result<PathBuf> {
    let _ = fs::remove_file(at);
    std::os::unix::fs::symlink(to, at)?;
    Ok(at.to_owned())
}

fn all_lists() -> Result<()> {
    let setup = setup("")?;
    setup.write_policy("rules.toml", &deny("users = [1234, 1235]\ngroups = [1, 2]"))?;
    let daemon = setup.start()?;
    for (uid, gid, want) in [(1234, 1, true), (1235, 2, true), (1234, 3, false), (1236, 1, false)] {
        expect(&format!("{uid}:{gid}"), &mut as_whom(uid, gid, &[]), want)?;
    }
    // An exception for one of them, and a port that does not matter.
    let exception = deny("users = [1235]").replace("scoped", "except").replace("\"deny\"", "\"allow\"");
    let policy =
        deny("users = [1234, 1235]") + &exception.replace("[rule.scope]", "ports = [443]\n[rule.scope]");
    change(&setup, &daemon, &policy)?;
    for (uid, want) in [(1234, true), (1235, false), (1236, false)] {
        expect(&format!("{uid}"), &mut as_whom(uid, 1, &[]), want)?;
    }
    daemon.stop()
}

const ROOT: &str = "/sys/fs/cgroup";

/// In a control group that is made for it.
fn within(path: &str, mut command: Command) -> Result<Command> {
    let directory = Path::new(ROOT).join(path);
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let procs = directory.join("cgroup.procs");
    // SAFETY: opens and writes a file, between fork and exec of a process with one thread that matters.
    unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
    Ok(command)
}

fn cgroups() -> Result<()> {
    cgroups_by(&setup("")?)
}

fn cgroups_by(setup: &Setup) -> Result<()> {
    setup.write_policy(
        "rules.toml",
        &deny("units = [\"web.service\", \"jobs.slice\"]\ncgroups = [\"/odd/place\"]"),
    )?;
    let daemon = setup.start()?;
    // No daemon is there to notice what comes.
    daemon.signal(Signal::STOP)?;
    let rows = [
        ("scope.slice/web.service", true),
        ("web.service", true),
        ("scope.slice/scope-deep.slice/web.service/inside/further", true),
        ("jobs.slice/any.service", true),
        ("scope.slice/other.service", false),
        ("scope.slice/other.service/web.service", false),
        ("scope.slice/xweb.service", false),
        ("scope.slice/web.service2", false),
        ("odd/place", true),
        ("odd/place/below", true),
        ("odd/places", false),
        ("odd", false),
        ("scope.slice/odd/place", false),
    ];
    let mut wrong = Vec::new();
    for (path, want) in rows {
        if is_refused(&mut within(path, itself())?)? != want {
            wrong.push(format!("{path} should be refused: {want}"));
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", "/payload/vmtests probe; code=$?; exit $code"]);
        if is_refused(&mut within(path, shell)?)? != want {
            wrong.push(format!("a child in {path} should be refused: {want}"));
        }
    }
    daemon.signal(Signal::CONT)?;
    for (path, _) in rows.iter().rev() {
        let mut path = Path::new(ROOT).join(path);
        while path != Path::new(ROOT) && fs::remove_dir(&path).is_ok() {
            path.pop();
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    daemon.stop()
}
