"""Debian packages of any suite, from the mirrors this system already uses, without touching its apt state."""

import platform
import re
import shutil

from .common import CACHE, LabError, run

RELEASE = "bookworm"
# Kernels newer than the release's own come from the next one's backports.
KERNEL_SUITES = (RELEASE, f"{RELEASE}-security", "trixie-backports")


def mirrors():
    """The archive's and the security archive's address, as configured here."""
    if shutil.which("apt-get") is None:
        raise LabError("the lab takes its kernels and its root image from Debian packages: apt-get is needed")
    listing = run(["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"])
    by_suite = dict(reversed([line.split(" ", 1) for line in listing.splitlines()]))
    archive = by_suite.get(RELEASE)
    if archive is None:
        raise LabError(f"apt has no {RELEASE} source; found: {', '.join(by_suite) or 'none'} (see tests/vm/README.md)")
    return archive.rstrip("/"), by_suite.get(f"{RELEASE}-security", "").rstrip("/")


def source_lines(suites):
    archive, security = mirrors()
    lines = []
    for suite in suites:
        uri = security if suite.endswith("-security") else archive
        if uri:
            lines.append(f"deb [arch={architecture()}] {uri} {suite} main")
    return lines


def architecture():
    if platform.machine() != "x86_64":
        raise LabError(f"the lab knows x86_64 kernels only, this is {platform.machine()}")
    return "amd64"


class PrivateApt:
    """An apt with its own sources and lists; the system's keyrings still decide what is trusted."""

    def __init__(self, suites):
        self.home = CACHE / "apt"
        for directory in ("lists/partial", "cache/archives/partial"):
            (self.home / directory).mkdir(parents=True, exist_ok=True)
        (self.home / "status").touch()
        sources = self.home / "sources.list"
        sources.write_text("\n".join(source_lines(suites)) + "\n")
        settings = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self.home / "lists",
            "Dir::State::Status": self.home / "status",
            "Dir::Cache": self.home / "cache",
            # `_apt` may not read a checkout in somebody's home.
            "APT::Sandbox::User": "",
        }
        self.options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def update(self):
        run(["apt-get", *self.options, "--error-on=any", "-q", "update"])

    def newest(self, pattern):
        """The package whose name matches the whole pattern and whose version is the highest."""
        names = [name for name in self.names("linux-") if re.fullmatch(pattern, name)]
        best = None
        for name in names:
            version = self.version(name)
            if best is None or is_newer(version, best[1]):
                best = (name, version)
        return best[0] if best else None

    def names(self, prefix):
        return run(["apt-cache", *self.options, "pkgnames", prefix]).split()

    def version(self, name):
        shown = run(["apt-cache", *self.options, "--no-all-versions", "show", name])
        return re.search(r"^Version: (\S+)", shown, re.MULTILINE).group(1)

    def url(self, name):
        return run(["apt-get", *self.options, "-q", "download", "--print-uris", name]).split("'")[1]

    def unpack(self, names, into):
        downloads = into.with_suffix(".downloads")
        downloads.mkdir()
        run(["apt-get", *self.options, "-q", "download", *names], cwd=downloads)
        for package in downloads.iterdir():
            run(["dpkg-deb", "-x", package, into])
        shutil.rmtree(downloads)

    def unpack_url(self, url, into):
        package = into.with_suffix(".deb")
        run(["curl", "-fsSL", "--retry", "3", "-o", package, url])
        run(["dpkg-deb", "-x", package, into])
        package.unlink()


def is_newer(one, other):
    try:
        run(["dpkg", "--compare-versions", one, "gt", other])
    except LabError:
        return False
    return True
