"""Benchmarks in a container, on this machine's own kernel; the table goes to the terminal as it grows."""

import os
import shlex

from . import container, payload
from .common import LabError, say, scratch
from .image import root_image

PASSED_ON = ("BENCH_ROUNDS", "BENCH_SECONDS")


def run():
    binaries = payload.build("release", "bench")
    words = "".join(f"export {name}={shlex.quote(os.environ[name])}\n" for name in PASSED_ON if name in os.environ)
    with scratch("bench") as work:
        files, console = payload.tree(work, binaries, f"{words}/payload/bench </dev/null\n"), work / "console"
        with container.started(work, root_image(), files, console) as process:
            for line in process.stdout:
                say(line.decode().rstrip("\n"))
            if process.wait() != 0:
                raise LabError(f"the benchmark ended early:\n{console.read_text(errors='replace')}")
    return 0
