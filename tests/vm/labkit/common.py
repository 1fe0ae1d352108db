"""Paths, words and processes that the whole lab shares."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
VM = CHECKOUT / "tests" / "vm"
GUEST = VM / "guest"
CACHE = CHECKOUT / ".lab"


class LabError(Exception):
    """What went wrong, in words for the person at the terminal."""


def say(text):
    # In one piece: several machines have something to say.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(command, **options):
    """Runs to the end; on failure the error carries what the command said."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is not installed: run scripts/setup") from error
    if done.returncode != 0:
        raise LabError(f"`{' '.join(command)}` failed ({done.returncode}):\n{done.stdout.strip()}")
    return done.stdout


def as_root(command):
    """The command with files owned by root, for real or as far as the files it makes can tell."""
    return list(command) if os.geteuid() == 0 else ["fakeroot", *command]


def digest(*parts):
    """Names a cached file after everything that it was made from."""
    total = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


@contextmanager
def scratch(name):
    """A directory that is gone afterwards. Not under /tmp, which is often small or in memory."""
    parent = CACHE / "scratch"
    parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def ext4(directory, image, size, label):
    """An ext4 file system with the directory's content, without mounting anything."""
    image.unlink(missing_ok=True)
    # No journal: the guest writes to a throw-away overlay, and mounting is faster.
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", label]
    run(as_root(["mke2fs", *options, "-d", directory, image, size]))


def die(text):
    sys.exit(f"lab: {text}")
