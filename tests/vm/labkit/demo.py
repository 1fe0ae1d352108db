"""The demo: a full Debian VM with systemd, whose story (tests/vm/demo/script.py) is told on this terminal."""

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time

from . import payload
from .common import CHECKOUT, LabError, VM, say, scratch
from .image import root_image
from .kernel import kernel
from .machine import machine

SERIES = "6.1"
LIMIT_SECONDS = 600
CONSOLE_TAIL = 40
WIDTH = 100
# A continued line starts below the second column of an event.
CONTINUED = " " * 8
FILES = ("tests/vm/demo", "packaging/enforcer.service", "packaging/enforcer.toml", "policies/00-default.toml")
BOLD, DIM, RED, GREEN, CYAN = ("\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[36m")
PLAIN = "\x1b[0m"
STYLE = re.compile(r"\x1b\[[0-9;]*m")
OTHER_CONTROLS = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]")


def run():
    binary = payload.build()["enforcer"]
    guest, root = kernel(SERIES), root_image()
    with scratch("demo") as work:
        disk = payload.disk(work, {"enforcer": binary}, "", [CHECKOUT / file for file in FILES])
        command = machine(guest, root, disk, "/payload/demo/init", extra="systemd.show_status=no net.ifnames=0")
        return tell(command, Story(f"Debian 12, kernel {guest.release}"), work / "console", LIMIT_SECONDS)


def tell(command, story, console, limit):
    """Starts the machine, and shows the story that it tells on its second line."""
    command += ["-chardev", f"file,id=console,path={console}", "-serial", "chardev:console", "-serial", "stdio"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        watchdog = threading.Timer(limit, process.kill)
        watchdog.start()
        try:
            for line in process.stdout:
                story.take(line)
        finally:
            watchdog.cancel()
            process.kill()
        words = process.stderr.read().decode(errors="replace").strip()
    if story.outcome is None:
        text = console.read_text(errors="replace") if console.exists() else ""
        tail = "\n".join(f"  | {line}" for line in [*words.splitlines(), *text.splitlines()[-CONSOLE_TAIL:]])
        raise LabError(f"the machine stopped or hung before the story ended; its console:\n{tail}")
    return story.outcome


class Story:
    """Renders the guest's JSON lines (tests/vm/demo/stage.py)."""

    def __init__(self, system, name="demo"):
        self.name = name
        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.begin = time.monotonic()
        self.steps = 0
        self.outcome = None
        self.system = system
        self.show(DIM, f"booting {system} …")

    def take(self, line):
        try:
            record = json.loads(line)
        except ValueError:
            return  # firmware and such
        text = record["text"]
        match record["kind"]:
            case "heading":
                self.heading(text)
            case "note":
                self.show(DIM, textwrap.fill(text, WIDTH, initial_indent="# ", subsequent_indent="# "))
            case "command":
                first, *more = text.splitlines()
                say(f"{self.style('$ ', CYAN)}{self.style(first, BOLD)}")
                self.show(BOLD, "\n".join(more)) if more else None
            case "output":
                self.output(text)
            case "good":
                self.show(GREEN, textwrap.fill(text, WIDTH, initial_indent="✓ ", subsequent_indent="  "))
            case "failed":
                self.show(RED, f"✗ not as narrated: {text}")
                self.outcome = 1
            case "end":
                say("")
                self.show(BOLD + GREEN, f"{self.name}: {text}")
                self.outcome = 0

    def heading(self, text):
        self.steps += 1
        if self.steps == 1:
            self.show(DIM, f"up after {time.monotonic() - self.begin:.0f} s; from here on everything is what the machine says")
        title = f"━━ {self.steps}. {text} "
        say("")
        self.show(BOLD + CYAN, title + "━" * (WIDTH - len(title)))

    def output(self, text):
        text = OTHER_CONTROLS.sub("", text)
        for line in text.splitlines():
            say("\n".join(wrapped(line if self.colour else STYLE.sub("", line))))

    def show(self, style, text):
        say(self.style(text, style))

    def style(self, text, style):
        return f"{style}{text}{PLAIN}" if self.colour else text


def wrapped(line):
    """Folded at blanks where it is too wide for the picture; styles take no room."""
    plain = STYLE.sub("", line)
    if len(plain) <= WIDTH:
        return [line]
    # Between the columns of a table, or else between words.
    cut = max(plain.rfind("  ", WIDTH // 2, WIDTH), 0) or plain.rfind(" ", WIDTH // 2, WIDTH)
    if cut < 0:
        return [line]
    cut = raw_index(line, cut)
    return [line[:cut].rstrip(), *wrapped(CONTINUED + line[cut:].lstrip())]


def raw_index(line, index):
    """Where the visible character of this index is, with the styles before it."""
    for style in STYLE.finditer(line):
        if style.start() > index:
            break
        index += len(style.group())
    return index
