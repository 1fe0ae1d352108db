"""One qemu machine: a kernel, the root image, what is tested; a console and a line for results."""

import gzip
import os
import shutil
import subprocess
from pathlib import Path

from .common import CACHE, GUEST, LabError, scratch
from .kernel import BUSYBOX, write_cpio

MEMORY = "1024"
# An oops ends the machine at once, so that it is a failure and not a strange test result later.
# module.sig_enforce: see kernel.fetch_packages.
CMDLINE = "console=ttyS0 oops=panic panic=-1 module.sig_enforce=1 random.trust_cpu=on mitigations=off"
PROBE_SECONDS = 6


def machine(kernel, root, payload, init, *, extra="", quiet=True, reboots=False):
    """The command line of the emulator. Its standard input and output are the guest's ttyS1."""
    cmdline = f"{CMDLINE} {'quiet' if quiet else ''} lab.init={init} {extra}".strip()
    disk = "if=virtio,format=raw,file="
    command = base(kernel, cmdline, kernel.initramfs)
    if reboots:
        command.remove("-no-reboot")
    return [
        *command,
        "-drive", f"{disk}{root},snapshot=on",
        "-drive", f"{disk}{kernel.modules_disk},readonly=on",
        "-drive", f"{disk}{payload},readonly=on",
    ]  # fmt: skip


def base(kernel, cmdline, initramfs):
    # More than one emulated CPU hangs and crashes guests; so does multi-threaded emulation.
    accel = ["-accel", "kvm", "-cpu", "host"] if kvm_works(kernel) else ["-accel", "tcg,thread=single", "-cpu", "max,la57=off"]
    return [
        # A lab that is killed takes its machines with it.
        "setpriv", "--pdeathsig", "KILL", "--",
        "qemu-system-x86_64", *accel, "-smp", "1", "-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none",
        "-no-reboot", "-kernel", str(kernel.image), "-initrd", str(initramfs), "-append", cmdline,
    ]  # fmt: skip


def kvm_works(kernel):
    """Whether a KVM guest gets as far as its first program; there are machines where it hangs before.

    The answer holds until the next boot of this machine.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    memory = CACHE / "accel"
    if memory.exists() and memory.read_text().split()[0] == boot:
        return memory.read_text().split()[1] == "kvm"
    works = probe_kvm(kernel)
    memory.write_text(f"{boot} {'kvm' if works else 'tcg'}\n")
    return works


def probe_kvm(kernel):
    with scratch("probe") as work:
        with gzip.open(work / "initramfs", "wb", compresslevel=1) as archive:
            write_cpio(archive, {"init": (GUEST / "probe-init", 0o755), "bin/busybox": (BUSYBOX, 0o755)})
        command = [
            "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-display", "none",
            "-no-reboot", "-serial", "stdio", "-kernel", str(kernel.image), "-initrd", str(work / "initramfs"),
            "-append", "console=ttyS0 quiet panic=-1",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return False
        return b"kvm-works" in done.stdout


def require_qemu():
    if shutil.which("qemu-system-x86_64") is None:
        raise LabError("qemu-system-x86 is not installed: run scripts/setup")
