"""Runs the tests in a guest for each kernel, and shows each result as it comes."""

import json
import os
import queue
import shlex
import subprocess
import threading
import time
from functools import partial

from . import container, payload
from .common import LabError, say, scratch
from .image import root_image
from .kernel import kernel
from .machine import machine

BOOT_SECONDS = 90
# An emulated machine with a test that takes as long as it may, and the clean-up after it.
GRACE_SECONDS = 30
CONSOLE_TAIL = 60
# What a test says that is of interest although it passed begins so.
MEASURED = "measured: "


# A second machine of the first kernel, whose list of LSMs lacks bpf: no daemon may believe that it enforces.
WITHOUT_BPF = "lsm=landlock,yama lab.without_bpf"


# Not a series: the kernel that this machine runs.
NATIVE = "native"
# What the tests look at in their environment, if it is set here: see tests/vm/README.md.
PASSED_ON = ("RACE_TRIES", "LAB_BROWSER")
# On each of two paths: 20,000 times a denied name in all, and every tenth is innocent.
FULL_RACE = "11250"


def run(series, filters, full=False):
    binaries = payload.build()
    root = root_image()
    total = [0, 0]
    machines = [(one, "") for one in sorted(series, key=lambda one: one != NATIVE)]
    machines += [(one, WITHOUT_BPF) for one in series if one != NATIVE][:1]
    settings = {"RACE_TRIES": FULL_RACE} if full and machines[0][0] != NATIVE else {}
    attempts = [
        partial(attempt, one, root, binaries, task(filters, {} if at else settings), extra)
        for at, (one, extra) in enumerate(machines)
    ]
    # This machine's own kernel is tested before the others take its time.
    alone = series.count(NATIVE)
    for passed, failed in [*(one() for one in attempts[:alone]), *at_once(attempts[alone:])]:
        total = [total[0] + passed, total[1] + failed]
    if sum(total) == 0:
        raise LabError(f"no test matches {' '.join(filters)}")
    say(f"{total[0]} passed, {total[1]} failed, 0 skipped")
    return 1 if total[1] else 0


def attempt(series, *how):
    try:
        passed, failed = run_kernel(series, *how)
    except LabError as error:
        say(f"{series:5} cannot be tested: {error}")
        passed, failed = 0, 1
    say(f"{series:5} {passed} passed, {failed} failed\n")
    return passed, failed


def at_once(works):
    """What they return, as they end: an emulated machine has one CPU, so there are as many as this one has CPUs."""
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for work in works:
        waiting.put(work)

    def worker():
        while True:
            try:
                work = waiting.get_nowait()
            except queue.Empty:
                return
            done.put(outcome(work))

    # Daemons, so that nobody waits for a machine when the lab is interrupted. A machine ends with the thread that started it.
    for _ in range(os.cpu_count() or 1):
        threading.Thread(target=worker, daemon=True).start()
    for _ in works:
        result = done.get()
        if isinstance(result, Exception):
            raise result
        yield result


def outcome(work):
    try:
        return work()
    except Exception as error:
        return error


def run_kernel(series, root, binaries, task, extra):
    with scratch("run") as work:
        report = Report(series, work / "console")
        start = time.monotonic()
        if series == NATIVE:
            files = payload.tree(work, binaries, f"export LAB_NATIVE=1\n{task}")
            with container.started(work, root, files, report.console) as process:
                report.follow(process)
            release = os.uname().release
        else:
            release = run_machine(report, work, root, payload.disk(work, binaries, f"({ON_TTY}\n{task})\n"), extra)
        say(f"{series:5} {release}: {time.monotonic() - start:.0f} s")
        return report.passed, report.failed


# ttyS1 carries nothing but records.
ON_TTY = "stty -F /dev/ttyS1 raw -echo; exec >/dev/ttyS1"


def task(filters, settings):
    """The script that a machine is started for. What is set here beats the settings."""
    settings = settings | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    words = [f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()]
    return f"{''.join(words)}/payload/vmtests run {shlex.join(filters)} </dev/null\n"


# A kernel is fetched once, and it is found out once whether this machine has KVM.
PREPARING = threading.Lock()


def run_machine(report, work, root, disk, extra):
    with PREPARING:
        guest = kernel(report.series)
        command = machine(guest, root, disk, "/payload/test-init", extra=extra)
    command += ["-chardev", f"file,id=console,path={report.console}", "-serial", "chardev:console", "-serial", "stdio"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            report.follow(process)
        finally:
            process.kill()
        if not report.ended and (words := process.stderr.read().decode(errors="replace").strip()):
            say(f"{report.series:5} qemu: {words}")
    return guest.release


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
        lines = record["output"].rstrip().splitlines()
        shown = [line for line in lines if not record["passed"] or line.startswith(MEASURED)]
        if shown:
            say("\n".join(f"      | {line}" for line in shown))

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
