"""The machine's own kernel: the guest's system in namespaces of its own, in a cgroup that stands for the root.

Nothing of the host is touched: the file system is the root image under a throw-away layer, the network has no way
out, the programs under test are attached to the cgroup made here, and everything ends with its first process.
"""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from .common import GUEST, LabError

NAME = "enforcer-native"
END_SECONDS = 20
NAMESPACES = ["--mount", "--net", "--pid", "--cgroup", "--uts", "--ipc"]


@contextmanager
def started(work, root, payload, console):
    """A process whose standard output is the task's; what else is said goes to the console file."""
    if os.geteuid() != 0:
        raise LabError("native tests need root (namespaces, loop mounts, BPF): run this as root, e.g. with sudo")
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        raise LabError("unshare and setpriv are not installed: they are in the package util-linux")
    with cgroup() as group, console.open("wb") as log:
        init = [str(word) for word in ("sh", GUEST / "container-init", work, root, payload)]
        # A lab that is killed takes its container with it.
        command = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", *NAMESPACES, "--fork", "--kill-child", "--", *init]

        def join():
            (group / "cgroup.procs").write_text("0")

        process = subprocess.Popen(command, preexec_fn=join, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@contextmanager
def cgroup():
    mount = cgroup2_mount()
    for stale in mount.glob(f"{NAME}-*"):
        remove_stale(stale)
    path = mount / f"{NAME}-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        (path / "cgroup.kill").write_text("1")
        remove(path)


def remove_stale(path):
    """What a lab left that was killed with SIGKILL: its processes ended with it."""
    alive = Path("/proc", path.name.rpartition("-")[2]).exists()
    try:
        if not alive and "populated 0" in (path / "cgroup.events").read_text():
            remove(path)
    except FileNotFoundError:
        pass  # another lab was faster


def remove(path):
    """Once its processes are gone, which the kernel does in its own time."""
    deadline = time.monotonic() + END_SECONDS
    while "populated 1" in (path / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise LabError(f"processes in {path} do not end")
        time.sleep(0.01)
    for directory, _, _ in sorted(os.walk(path), reverse=True):
        Path(directory).rmdir()


def cgroup2_mount():
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(point)
    raise LabError("no cgroup2 file system is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
