"""Debian's kernels: fetched as packages, each with a tiny initramfs and a disk of its modules."""

import gzip
import lzma
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .apt import KERNEL_SUITES, PrivateApt
from .common import CACHE, GUEST, LabError, digest, ext4, run, say, scratch

# What finds the disks; everything else the guest loads from the modules' disk.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
BUSYBOX = Path("/bin/busybox")


@dataclass(frozen=True)
class Kernel:
    series: str  # 6.1
    release: str  # 6.1.0-53-cloud-amd64, as uname -r says
    image: Path
    modules_disk: Path
    initramfs: Path


def kernel(series, update=False):
    """The newest packaged kernel of a series; fetched when it is not here yet, or on request."""
    if not re.fullmatch(r"\d+(\.\d+)?", series):
        raise LabError(f"`{series}` is not a kernel series: write it like 6.1, or 7 for the newest 7.x")
    home = CACHE / "kernel" / series
    if update or not home.exists():
        fetch(series, home)
    release = (home / "release").read_text().strip()
    return Kernel(series, release, home / "vmlinuz", home / "modules.ext4", initramfs(home, release))


def fetch(series, home):
    say(f"kernel {series}: fetching …")
    apt = PrivateApt(KERNEL_SUITES)
    apt.update()
    versions = re.escape(series) + r"\.[\d.]+\S*-cloud-amd64"
    # Since 7.x `linux-image-*` is an empty shell around `linux-binary-*`.
    package = apt.newest(f"linux-binary-{versions}") or apt.newest(f"linux-image-{versions}")
    if package is None:
        raise LabError(f"no suite of {', '.join(KERNEL_SUITES)} has a {series} cloud kernel")
    home.parent.mkdir(parents=True, exist_ok=True)
    with scratch("kernel") as work:
        fetch_packages(apt, package, work / "root")
        assemble(work / "root", work / "kernel")
        shutil.rmtree(home, ignore_errors=True)
        (work / "kernel").rename(home)
    say(f"kernel {series}: {(home / 'release').read_text().strip()} ready")


def fetch_packages(apt, package, into):
    """The kernel's package and, where they are separate (7.x), its modules."""
    modules = re.sub(r"^linux-binary-", "linux-modules-", package)
    if modules == package or modules in apt.names("linux-modules-"):
        return apt.unpack({package, modules}, into)
    # The index of backports forgets the modules of all but the newest kernels while the files are still
    # there. No signed index vouches for such a file: the kernel itself does, as it is started with
    # module.sig_enforce=1 and knows only the key of its own build.
    apt.unpack([package], into)
    apt.unpack_url(re.sub(r"/pool/.*/linux-binary-", "/pool/main/l/linux/linux-modules-", apt.url(package)), into)


def assemble(root, home):
    """Packages' content → vmlinuz, modules/, modules.ext4 and the release's name."""
    lib = root / ("usr/lib/modules" if (root / "usr/lib/modules").exists() else "lib/modules")
    releases = [path.name for path in lib.glob("*")]
    if len(releases) != 1:
        raise LabError(f"expected the modules of one kernel in the packages, found {releases}")
    release = releases[0]
    images = [path for path in (root / f"boot/vmlinuz-{release}", lib / release / "vmlinuz") if path.exists()]
    if len(images) != 1:
        raise LabError(f"expected one kernel image in the packages, found {images}")
    home.mkdir()
    images[0].rename(home / "vmlinuz")
    decompress_modules(lib / release)
    tree = root / "depmod" / "lib" / "modules"
    tree.parent.mkdir(parents=True)
    lib.rename(tree)
    run(["depmod", "-b", root / "depmod", release])
    (home / "release").write_text(release + "\n")
    ext4(tree, home / "modules.ext4", "512M", "modules")
    tree.rename(home / "modules")


def decompress_modules(directory):
    """Unpacked here once instead of in an emulated guest at every boot."""
    for path in directory.rglob("*.ko.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()


def initramfs(home, release):
    init = GUEST / "initramfs-init"
    if not BUSYBOX.exists():
        raise LabError("busybox-static is not installed: run scripts/setup")
    target = home / f"initramfs-{digest(init, BUSYBOX, BOOT_MODULES)}.gz"
    if not target.exists():
        modules = [home / "modules" / release / path for path in load_order(home / "modules" / release, BOOT_MODULES)]
        files = {"init": (init, 0o755), "bin/busybox": (BUSYBOX, 0o755)}
        files |= {f"modules/{number:02}.ko": (path, 0o644) for number, path in enumerate(modules)}
        with gzip.open(target.with_suffix(".part"), "wb", compresslevel=1) as archive:
            write_cpio(archive, files)
        target.with_suffix(".part").rename(target)
    return target


def load_order(directory, wanted):
    """Module files, each after those it needs. What has no file is built in."""
    needs = dict(line.split(":", 1) for line in (directory / "modules.dep").read_text().splitlines())
    by_name = {Path(path).name.removesuffix(".ko"): path for path in needs}
    order = []
    for path in (by_name[name] for name in wanted if name in by_name):
        order += [need for need in (*reversed(needs[path].split()), path) if need not in order]
    return order


def write_cpio(archive, files):
    """The kernel's own archive format ("newc"), directories included."""
    directories = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    for inode, name in enumerate([*directories, *files, "TRAILER!!!"], start=1):
        path, mode = files.get(name, (None, 0))
        mode = 0o100000 | mode if path else (0o040755 if name in directories else 0)
        data = path.read_bytes() if path else b""
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive.write(header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4))
