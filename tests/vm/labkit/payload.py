"""What is tested, built and put on a disk of its own."""

import os
import shutil

from .common import CHECKOUT, GUEST, ext4, run

SIZE = "96M"


def build(profile="lab", tests="vmtests"):
    """The binaries under test, from this checkout as it is now."""
    packages = ["-p", "enforcer", "-p", "enforcer-tests", "--bin", "enforcer", "--bin", tests]
    run(["cargo", "build", "--locked", "--profile", profile, *packages], cwd=CHECKOUT)
    target = os.environ.get("CARGO_TARGET_DIR", CHECKOUT / "target")
    return {name: f"{target}/{profile}/{name}" for name in ("enforcer", tests)}


def tree(work, binaries, task, files=()):
    """A directory with the binaries, the guest's init, `task` (which that init runs), and more files."""
    tree = work / "payload"
    tree.mkdir()
    for name, path in binaries.items():
        # Debug information would only take time to copy.
        run(["strip", "--strip-debug", "-o", tree / name, path])
    shutil.copy(GUEST / "test-init", tree / "test-init")
    (tree / "test-init").chmod(0o755)
    (tree / "task").write_text(task)
    for source in files:
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tree / source.name)
    return tree


def disk(work, binaries, task, files=()):
    """An image of the same."""
    image = work / "payload.ext4"
    ext4(tree(work, binaries, task, files), image, SIZE, "payload")
    return image
