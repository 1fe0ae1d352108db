"""Runs the tests in a guest for each kernel, and shows each result as it comes."""

import json
import queue
import shlex
import subprocess
import threading
import time

from . import payload
from .common import LabError, say, scratch
from .image import root_image
from .kernel import kernel
from .machine import machine

BOOT_SECONDS = 90
# An emulated machine with a test that takes as long as it may, and the clean-up after it.
GRACE_SECONDS = 30
CONSOLE_TAIL = 60


# A second machine of the first kernel, whose list of LSMs lacks bpf: no daemon may believe that it enforces.
WITHOUT_BPF = "lsm=landlock,yama lab.without_bpf"


def run(series, filters):
    binaries = payload.build()
    root = root_image()
    total = [0, 0]
    for one, extra in [*((one, "") for one in series), (series[0], WITHOUT_BPF)]:
        try:
            passed, failed = run_kernel(one, root, binaries, filters, extra)
        except LabError as error:
            say(f"{one:5} cannot be tested: {error}")
            passed, failed = 0, 1
        say(f"{one:5} {passed} passed, {failed} failed\n")
        total = [total[0] + passed, total[1] + failed]
    if sum(total) == 0:
        raise LabError(f"no test matches {' '.join(filters)}")
    say(f"{total[0]} passed, {total[1]} failed, 0 skipped")
    return 1 if total[1] else 0


def run_kernel(series, root, binaries, filters, extra):
    with scratch("run") as work:
        # ttyS1 carries nothing but records.
        task = f"stty -F /dev/ttyS1 raw -echo\n/payload/vmtests run {shlex.join(filters)} >/dev/ttyS1 </dev/null\n"
        disk = payload.disk(work, binaries, task)
        guest = kernel(series)
        start = time.monotonic()
        report = Report(series, work / "console")
        command = machine(guest, root, disk, "/payload/test-init", extra=extra)
        command += ["-chardev", f"file,id=console,path={report.console}", "-serial", "chardev:console", "-serial", "stdio"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                report.follow(process)
            finally:
                process.kill()
            if not report.ended and (words := process.stderr.read().decode(errors="replace").strip()):
                say(f"{series:5} qemu: {words}")
        say(f"{series:5} {guest.release}: {time.monotonic() - start:.0f} s")
        return report.passed, report.failed


class Report:
    """The guest's JSON lines (tests/src/harness.rs, `Record`), counted and shown."""

    def __init__(self, series, console):
        self.series, self.console = series, console
        self.passed = self.failed = 0
        self.running = None
        self.ended = False

    def follow(self, process):
        lines = queue.Queue()
        threading.Thread(target=pump, args=(process.stdout, lines), daemon=True).start()
        patience = BOOT_SECONDS
        while True:
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                return self.lost(f"silence for {patience} s: the machine hangs")
            if line is None:
                return None if self.ended else self.lost("the machine stopped before the tests ended")
            patience = self.take(line, patience)

    def take(self, line, patience):
        if not line.startswith(b"{"):
            return patience  # firmware and such
        record = json.loads(line)
        match record.get("kind"):
            case "start":
                self.running = record["test"]
                return record["patience_seconds"] + GRACE_SECONDS
            case "result":
                self.show(record)
                self.running = None
            case "end":
                self.ended = True
                if (record["passed"], record["failed"]) != (self.passed, self.failed):
                    self.lost(f"results were lost on the way: the guest counted {record}")
        return GRACE_SECONDS

    def show(self, record):
        if record["passed"]:
            self.passed += 1
        else:
            self.failed += 1
        word = "ok" if record["passed"] else "FAILED"
        say(f"{self.series:5} {record['test']:.<44} {word} ({record['seconds']:.1f} s)")
        if not record["passed"]:
            say("\n".join(f"      | {line}" for line in record["output"].rstrip().splitlines()))

    def lost(self, why):
        self.failed += 1
        during = f" during {self.running}" if self.running else ""
        say(f"{self.series:5} FAILED{during}: {why}")
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        say("\n".join(f"      | {line}" for line in text.splitlines()[-CONSOLE_TAIL:]))


def pump(stream, lines):
    for line in stream:
        lines.put(line)
    lines.put(None)


def shell(series):
    binaries = payload.build()
    with scratch("shell") as work:
        task = "/payload/vmtests network\nstty -F /dev/ttyS0 sane\nPATH=/payload:$PATH setsid -c bash </dev/ttyS0 >/dev/ttyS0 2>&1\n"
        disk = payload.disk(work, binaries, task)
        command = machine(kernel(series), root_image(), disk, "/payload/test-init")
        return subprocess.call([*command, "-serial", "mon:stdio"])
