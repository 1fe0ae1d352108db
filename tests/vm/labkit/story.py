"""The story of an installation, played in a full Debian VM with the packages of dist/ (tests/vm/story/story.py)."""

import os

from . import payload
from .common import CHECKOUT, CACHE, LabError, VM, run, say, scratch
from .demo import Story, tell
from .image import root_image
from .kernel import kernel
from .machine import machine

SERIES = "6.1"
# What continuous integration plays: all but the proof that the reboot's test can fail, and the kernel without bpf.
SHORT = "install deny edit mistake restart reboot broken upgrade stop keep resolved remove purge rpm".split()
WITHOUT_BPF = "lsm=landlock,yama"
LIMIT_SECONDS = 900
LIMIT_SECONDS_A_REBOOT = 120


def play(chapters, boots=1):
    """Returns how many stories did not go as narrated."""
    packages = build()
    full = not chapters
    chapters = chapters or SHORT
    at = chapters.index("reboot") if "reboot" in chapters else 0
    chapters = [*chapters[:at], *["reboot"] * (boots - 1), *chapters[at:]]
    failed = one(packages, chapters)
    if full:
        failed += one(packages, ["without_bpf"], extra=WITHOUT_BPF)
    stories = 2 if full else 1
    say(f"{stories - failed} passed, {failed} failed, 0 skipped")
    return failed


def build():
    """The packages of this checkout, and those that they are upgraded to, from the binary that the other tests use."""
    into = CACHE / "packages"
    into.mkdir(exist_ok=True)
    for old in into.iterdir():
        old.unlink()
    version = run(["sed", "-n", 's/^version = "\\(.*\\)"/\\1/p', CHECKOUT / "Cargo.toml"]).split()[0]
    for name in (version, f"{version}+upgrade"):
        environment = os.environ | {"PROFILE": "lab", "OUT": str(into), "VERSION": name}
        run([CHECKOUT / "packaging/build"], env=environment, cwd=CHECKOUT)
    return into


def one(packages, chapters, extra=""):
    guest, root = kernel(SERIES), root_image()
    with scratch("story") as work:
        (work / "chapters").write_text("\n".join(chapters))
        files = [VM / "demo", VM / "story", packages, work / "chapters"]
        disk = payload.disk(work, {}, "", files)
        extra = f"systemd.show_status=no net.ifnames=0 {extra}"
        command = machine(guest, root, disk, "/payload/story/init", extra=extra, reboots=True)
        limit = LIMIT_SECONDS + chapters.count("reboot") * LIMIT_SECONDS_A_REBOOT
        story = Story(f"Debian 12, kernel {guest.release} {extra.strip()}", "story")
        try:
            return tell(command, story, work / "console", limit)
        except LabError as error:
            say(str(error))
            return 1
