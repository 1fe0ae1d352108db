"""Benchmarks in a container, on this machine's own kernel; the table goes to the terminal as it grows."""

import lzma
import os
import shlex

from . import container, payload
from .common import LabError, say, scratch
from .image import root_image

PASSED_ON = ("BENCH_ROUNDS", "BENCH_SECONDS", "BENCH_SETTINGS")


def run(names=()):
    binaries = payload.build(os.environ.get("BENCH_PROFILE", "release"), "bench")
    words = "".join(f"export {name}={shlex.quote(os.environ[name])}\n" for name in PASSED_ON if name in os.environ)
    with scratch("bench") as work:
        files, console = payload.tree(work, binaries, f"{words}/payload/bench {shlex.join(names)} </dev/null\n"), work / "console"
        lines(files / "names.txt")
        with container.started(work, root_image(), files, console) as process:
            for line in process.stdout:
                say(line.decode().rstrip("\n"))
            if process.wait() != 0:
                raise LabError(f"the benchmark ended early:\n{console.read_text(errors='replace')}")
    return 0


def lines(target):
    """The names of a real list for the benchmark of scale; without one it makes them up."""
    source = os.environ.get("BENCH_NAMES")
    if source:
        opener = lzma.open if source.endswith(".xz") else open
        with opener(source, "rb") as text:
            target.write_bytes(text.read())
