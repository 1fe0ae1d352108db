//! A control group of its own for one command, which ends with us however we end.
//!
//! What enforces there is pinned in a bpf file system of its own, in a mount namespace that only we and a watcher are in.
//! The watcher holds a pipe of ours. When that closes, also because we were killed, it kills what is left in the group
//! while everything is still enforced, and removes the group; with the watcher the namespace and the pins go.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

const PREFIX: &str = "enforcer-exec-";
/// There on every system that enforcer runs on.
const PINS: &str = "/sys/fs/bpf";

/// `cgroup.kill` takes groups below along, whose own watchers may be killed by that: so all of them are removed.
const WATCHER: &str = r#"
trap '' INT HUP TERM QUIT
read -r _
n=0
while [ -d "$1" ] && [ $n -lt 500 ]; do
    echo 1 >"$1/cgroup.kill" || find "$1" -name cgroup.procs -exec cat {} + | xargs kill -9
    find "$1" -depth -type d -exec rmdir {} \;
    [ ! -d "$1" ] || sleep 0.02
    n=$((n + 1))
done
"#;

#[derive(Debug)]
pub struct Enclosure {
    cgroup: PathBuf,
    /// What the command shall see: this process sees another mount namespace.
    namespace: OwnedFd,
    root: OwnedFd,
    directory: OwnedFd,
    watcher: Child,
}

impl Enclosure {
    /// Below our own control group, so that whatever holds there holds here. `mount`: where cgroup2 is. To be called
    /// before any thread is started.
    pub fn new(mounted: &Path) -> io::Result<Self> {
        let parent = own_group(mounted);
        remove_leftovers(&parent);
        let cgroup = parent.join(format!("{PREFIX}{}", std::process::id()));
        let told = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        fs::create_dir(&cgroup).map_err(|error| told("cannot make a control group", error))?;
        let enclosed = enclose(cgroup.clone());
        if enclosed.is_err() {
            // It is empty; a later run removes it if this fails.
            let _ = fs::remove_dir(&cgroup);
        }
        enclosed.map_err(|error| told("cannot enclose the command", error))
    }

    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A directory on a bpf file system that nobody else sees.
    pub fn pins(&self) -> &Path {
        Path::new(PINS)
    }

    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let group = File::options().write(true).open(self.cgroup.join("cgroup.procs"))?;
        let (namespace, root) = (self.namespace.try_clone()?, self.root.try_clone()?);
        let directory = self.directory.try_clone()?;
        let enter = move || {
            // The process that writes it.
            rustix::io::write(&group, b"0")?;
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Mount))?;
            rustix::process::fchdir(&root)?;
            rustix::process::chroot(".")?;
            rustix::process::fchdir(&directory)?;
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls only: no allocation, no lock.
        unsafe { command.pre_exec(enter) }.spawn()
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        // It ends soon; if it cannot be waited for, it ends without us.
        let _ = self.watcher.wait();
    }
}

fn enclose(cgroup: PathBuf) -> io::Result<Enclosure> {
    let namespace = File::open("/proc/self/ns/mnt")?.into();
    let (root, directory) = (File::open("/")?.into(), File::open(".")?.into());
    // SAFETY: file descriptors stay shared, and there is no other thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("bpf", PINS, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?;
    let watcher = Command::new("/bin/sh")
        .args(["-c", WATCHER, "enforcer-exec-watcher"])
        .arg(&cgroup)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    Ok(Enclosure { cgroup, namespace, root, directory, watcher })
}

/// Our own control group, or the root if it is not to be seen from here.
fn own_group(mounted: &Path) -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let own = mounted.join(path);
    if path.split('/').all(|part| part != "..") && own.is_dir() { own } else { mounted.to_owned() }
}

/// Empty groups of runs whose watcher was killed as well.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // One that still has processes is busy, and stays.
            let _ = fs::remove_dir(entry.path());
        }
    }
}
