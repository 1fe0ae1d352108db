"""What the script is written in: headings, real commands, waiting, and assertions. One JSON line each, which
the host renders (`labkit/demo.py`)."""

import json
import os
import re
import subprocess
import sys
import time

# Real colours for the host to show or to strip; no pagers.
ENVIRONMENT = os.environ | {"CLICOLOR_FORCE": "1", "SYSTEMD_COLORS": "1", "SYSTEMD_PAGER": "", "SYSTEMD_URLIFY": "0", "COLUMNS": "100"}
PATIENCE_SECONDS = 30
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class NotAsNarrated(Exception):
    pass


def tell(kind, text=""):
    sys.stdout.write(json.dumps({"kind": kind, "text": text}) + "\n")
    sys.stdout.flush()


def heading(text):
    tell("heading", text)


def note(text):
    """What is going to happen."""
    tell("note", text)


def good(text):
    """What was just asserted."""
    tell("good", text)


def run(command):
    """Shows a command and what it says, and returns its exit code and its words without colours."""
    tell("command", command)
    code, output = quietly(command)
    if output:
        tell("output", output)
    return code, COLOUR.sub("", output)


def quietly(command):
    done = subprocess.run(
        ["bash", "-c", command], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(errors="replace").rstrip("\n")


def expect(result, code, *words):
    """The result of `run` has this exit code, and these words stand in it."""
    if result[0] != code:
        raise NotAsNarrated(f"exit code {result[0]} instead of {code}")
    for word in words:
        if word not in result[1]:
            raise NotAsNarrated(f"`{word}` is not in the output")


def ask(what):
    """`enforcer WHAT --json`; nothing while it cannot be asked."""
    _, output = quietly(f"enforcer {what} --json 2>/dev/null")
    try:
        return json.loads(output)
    except ValueError:
        return None


def until(what, condition):
    """Waits; returns the seconds that it took."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > PATIENCE_SECONDS:
            raise NotAsNarrated(f"{what}: not within {PATIENCE_SECONDS} s")
        time.sleep(0.02)
    return time.monotonic() - begin
