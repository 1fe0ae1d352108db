"""The one root file system: a small Debian with systemd, and the real clients and servers of the tests."""

import os
import shutil

from .apt import RELEASE, source_lines
from .common import CACHE, LabError, as_root, digest, ext4, run, say, scratch

PACKAGES = """
    busybox-static ca-certificates curl dbus dnsmasq-base iproute2 kmod libc-bin openssl procps python3
    prometheus python3-prometheus-client rpm rsyslog socat systemd systemd-sysv udev util-linux
    bpftool strace
    bind9 bind9-dnsutils bind9-utils dnsperf knot knot-dnsutils knot-resolver libnss-resolve systemd-resolved unbound
""".split()
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
# Run in the new system's directory. Nothing here may depend on the machine that builds the image.
CUSTOMIZE = """
set -e
cd "$1"
echo enforcer-vm > etc/hostname
printf '127.0.0.1 localhost enforcer-vm\\n::1 localhost\\n' > etc/hosts
chroot . passwd -q -d root
chroot . systemctl -q mask systemd-networkd-wait-online.service apt-daily.timer e2scrub_all.timer fstrim.timer
# Servers start when a test wants them; a name is looked up as everywhere.
for unit in named unbound knot systemd-resolved; do chroot . systemctl -q mask $unit.service; done
# A file: where there is none, systemd-resolved's tmpfiles.d links to what its service would write.
rm -f etc/resolv.conf
: > etc/resolv.conf
sed -i 's/^hosts:.*/hosts: files dns/' etc/nsswitch.conf
mkdir -p payload etc/enforcer
rm -rf var/cache/apt var/lib/apt/lists
: > etc/machine-id
"""
SIZE = "1536M"  # sparse: the guest writes to an overlay, so this is its room
# With LAB_BROWSER in the environment: an image of its own, with clients that are large.
BROWSER = ["chromium", "chromium-driver", "cargo-web", "gcc", "libc6-dev"]
BROWSER_SIZE = "3G"


def root_image():
    """The image's path; built when the recipe changed."""
    browser = "LAB_BROWSER" in os.environ
    name, packages, size = ("browser", PACKAGES + BROWSER, BROWSER_SIZE) if browser else ("root", PACKAGES, SIZE)
    recipe = digest(RELEASE, packages, EXCLUDED, CUSTOMIZE, size)
    image = CACHE / "image" / f"{name}-{recipe}.ext4"
    if not image.exists():
        build(image, packages, size)
        for old in image.parent.glob(f"{name}-*.ext4"):
            if old != image:
                old.unlink()
    return image


def build(image, packages, size):
    if shutil.which("mmdebstrap") is None:
        raise LabError("mmdebstrap is not installed: run scripts/setup")
    say("root image: building (once; about a minute) …")
    image.parent.mkdir(parents=True, exist_ok=True)
    with scratch("image") as work:
        tarball, tree, unfinished = work / "root.tar", work / "root", work / "root.ext4"
        (work / "customize").write_text(CUSTOMIZE)
        suites = (RELEASE, f"{RELEASE}-security")
        run([
            "mmdebstrap", "--variant=essential", f"--include={','.join(packages)}",
            *[f"--dpkgopt=path-exclude={path}" for path in EXCLUDED],
            f"--customize-hook=sh {work / 'customize'} \"$1\"",
            RELEASE, tarball, *source_lines(suites),
        ])
        tree.mkdir()
        # One process: what fakeroot knows about owners ends with it.
        script = 'tar -xf "$1" -C "$2" --exclude=./dev/* && mke2fs -q -t ext4 -O ^has_journal -m 0 -L root -d "$2" "$3" "$4"'
        run(as_root(["sh", "-c", script, "sh", tarball, tree, unfinished, size]))
        unfinished.rename(image)
    say(f"root image: {image.name} ready")
