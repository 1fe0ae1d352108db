"""Records what real DNS servers say, for the tests that run without them."""

from . import container, payload
from .common import CHECKOUT, LabError, say, scratch
from .image import root_image

FIXTURES = CHECKOUT / "tests" / "fixtures" / "dns"


def run():
    binaries = payload.build()
    with scratch("record") as work:
        files, console = payload.tree(work, binaries, "/payload/vmtests record </dev/null\n"), work / "console"
        with container.started(work, root_image(), files, console) as process:
            lines = process.stdout.read().decode().splitlines()
            if process.wait() != 0:
                raise LabError(f"nothing was recorded:\n{console.read_text(errors='replace')}")
    FIXTURES.mkdir(parents=True, exist_ok=True)
    texts = {}
    for line in lines:
        if line.startswith("file "):
            texts[name := line.removeprefix("file ")] = []
        else:
            texts[name].append(line)
    for name, text in texts.items():
        (FIXTURES / name).write_text("".join(f"{line}\n" for line in text))
        say(f"{name}: {len(text) - 1} messages")
    return 0
