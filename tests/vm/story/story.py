"""The story of an installation: what an administrator types, in which order, and what must come of it.

    story.py [CHAPTER...]   plays the chapters; without any, goes on where a reboot interrupted

Runs as root on a system of systemd whose "internet" is the units beside this file. `packages/` beside `story/` holds
the packages. Prints JSON lines (../demo/stage.py). Exit status 3: the machine reboots, go on afterwards.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))

from stage import NotAsNarrated, ask, expect, good, heading, note, quietly, run, tell, until  # noqa: E402

PACKAGES = HERE.parent / "packages"
MEMORY = Path("/var/lib/story")
POLICY = "/etc/enforcer/policies.d/50-ads.toml"
COULD_NOT_CONNECT = 7  # curl's exit code
PINS = Path("/sys/fs/bpf/enforcer")
REBOOTING = 3

# What a package leaves behind, wherever it may be.
TRACES = """
    /etc/enforcer /etc/logrotate.d/enforcer /usr/bin/enforcer /run/enforcer /var/lib/enforcer /var/log/enforcer
    /sys/fs/bpf/enforcer /usr/share/enforcer /usr/share/doc/enforcer /etc/systemd/system/enforcer.service
    /etc/systemd/system/*.wants/enforcer*.service /*/systemd/system/enforcer* /run/enforcer-resolved.sock /usr/share/man/man8/enforcer*
    /var/lib/systemd/deb-systemd-helper-enabled/*enforcer*
""".split()


def denied(name):
    return any(name in entry["names"] for entry in ask("denied") or [])


def reached(name):
    expect(run(f"curl -sS http://{name}/"), 0, f"Hello, this is {name}.")


def refused(name):
    expect(run(f"curl -sS http://{name}/"), COULD_NOT_CONNECT, "Failed to connect")


def active():
    return quietly("systemctl is-active enforcer")[0] == 0


def enforcing():
    """The daemon runs and answers."""
    return (ask("status") or {}).get("enforcement", {}).get("active", False)


def policy():
    """What the daemon says about its policy; nothing while it cannot be asked."""
    return (ask("status") or {}).get("policy", {})


@contextmanager
def hammered():
    """A client connects to a denied address and name all the while; nobody gets through."""
    command = [sys.executable, str(HERE / "client.py"), "198.51.100.30", "banner.ads.example"]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        client.terminate()
        said = client.communicate(timeout=30)[0]
    check_counts(json.loads(said.splitlines()[-1]))


def check_counts(counts):
    tell("output", json.dumps(counts))
    if counts.get("reached", 0) != 0 or counts.get("refused", 0) < 10:
        raise NotAsNarrated("a client got through, or hardly tried")


def package(pattern):
    found = sorted(PACKAGES.glob(pattern))
    if len(found) != 1:
        raise NotAsNarrated(f"{len(found)} packages are {PACKAGES}/{pattern}")
    return found[0]


def install_command(deb):
    if shutil.which("apt-get"):
        return f"apt-get install -y -qq --allow-downgrades {deb}"
    return f"dpkg -i {deb}"


def write_policy():
    rule = '[[rule]]\nname   = "no-ads"\naction = "deny"\nhosts  = [".ads.example"]'
    expect(run(f"cat > {POLICY} <<.\n{rule}\n."), 0)
    until("the rule to count", lambda: policy().get("rules") == 1)


# The chapters.


def install():
    heading("Install")
    expect(run(install_command(package("enforcer_*[0-9]-1_amd64.deb"))), 0)
    until("the daemon to run", active)
    expect(run("systemctl is-enabled enforcer"), 0, "enabled")
    status = run("systemctl status --no-pager -n 0 enforcer | grep -E 'enforcer.service -|Loaded:|Active:|Status:'")
    expect(status, 0, "active (running)", "enforcing by")
    expect(run("enforcer status"), 0, "enforcing: LSM")
    exposure(run("systemd-analyze security --no-pager enforcer | tail -n 1"), 2.5)
    reached("banner.ads.example")
    good("installed, enabled and started, with a policy that denies nothing")


def exposure(result, limit):
    seen = float(re.search(r"enforcer\S*.service: ([0-9.]+)", result[1]).group(1))
    if seen > limit:
        raise NotAsNarrated(f"exposure {seen} is above {limit}")


def deny():
    heading("A first policy")
    write_policy()
    refused("banner.ads.example")
    reached("news.example")
    command = "journalctl -q -t enforcer -o cat -n 1 ENFORCER_VERDICT=deny"
    until("the event", lambda: "banner.ads.example" in quietly(command)[1])
    expect(run(command), 0, "DENY", "banner.ads.example", "no-ads")
    good("the client gets EPERM, the journal says who, where to, and by which rule")


def edit():
    heading("An edit takes effect")
    expect(run(f"sed -i 's/.ads.example/.tracker.example/' {POLICY}"), 0)
    until("the name to be free", lambda: quietly("curl -sS http://banner.ads.example/")[0] == 0)
    reached("banner.ads.example")
    refused("px.tracker.example")
    expect(run(f"sed -i 's/.tracker.example/.ads.example/' {POLICY}"), 0)
    until("the name to be denied", lambda: denied("banner.ads.example"))
    refused("banner.ads.example")
    good("without a restart")


def mistake():
    heading("A mistake changes nothing, and is told")
    expect(run(f"sed -i 's/deny/dney/' {POLICY} && systemctl reload enforcer"), 0)
    until("the daemon to notice", lambda: policy().get("error"))
    place = f"{POLICY}:3:"
    expect(run("enforcer status"), 0, "enforcing: LSM", "the policy from before them is in force", place)
    expect(run("journalctl -q -u enforcer -o cat -p err -n 8"), 0, place, "dney")
    refused("banner.ads.example")
    expect(run(f"sed -i 's/dney/deny/' {POLICY} && systemctl reload enforcer"), 0)
    until("the daemon to notice", lambda: policy().get("error", "?") is None)
    good("the rules from before stay; `enforcer status` and the journal say file, line and column")


def restart():
    heading("A restart opens nothing")
    before = ask("status")["pid"]
    with hammered():
        expect(run("systemctl restart enforcer"), 0)
        until("the new daemon to answer", enforcing)
    if ask("status")["pid"] == before:
        raise NotAsNarrated("the daemon was not restarted")
    if not denied("banner.ads.example"):
        raise NotAsNarrated("the new daemon does not know the name of the address any more")
    good("nobody got through meanwhile, and the next daemon knows what its predecessor knew")


def reboot():
    if not (MEMORY / "rebooted").exists():
        heading("A reboot")
        refused("banner.ads.example")  # so it is known
        (MEMORY / "early").touch()
        return go_on_after_reboot("rebooted")
    heading("Rebooted: refused from the first packet on")
    (MEMORY / "rebooted").unlink()
    until("the daemon to enforce", enforcing)
    check_counts(early())
    show = "systemctl show --value -p ActiveEnterTimestampMonotonic"
    enforced, network = (int(quietly(f"{show} {unit}")[1]) for unit in ("enforcer.service", "network-pre.target"))
    if not 0 < enforced < network:
        raise NotAsNarrated(f"enforcing at {enforced} us, but networks might come up from {network} us on")
    note(f"enforcing {enforced / 1e6:.1f} s after the start, networks may come up from {network / 1e6:.1f} s on")
    expect(run("enforcer denied"), 0, "banner.ads.example", "no-ads")
    good("a client that wrote the address down before the reboot, and connects as early as it can, is refused")


def early():
    """What came of the early client's attempts."""
    file = Path("/run/story-early.json")
    until("the early client to have tried", lambda: file.exists() and file.read_text())
    expect(run("systemctl stop story-early"), 0)
    return json.loads(file.read_text().splitlines()[-1])


def broken():
    if not (MEMORY / "rebooted").exists():
        heading("A reboot with a mistake in the policy")
        refused("banner.ads.example")
        expect(run(f"sed -i 's/deny/dney/' {POLICY}"), 0)
        (MEMORY / "early").touch()
        return go_on_after_reboot("rebooted")
    heading("Rebooted: what was last in force is enforced")
    (MEMORY / "rebooted").unlink()
    until("the daemon to enforce", enforcing)
    check_counts(early())
    refused("px.ads.example")  # a name that was never asked for before
    expect(run("enforcer status"), 0, "enforcing: LSM", "the last good policy, put in force at", f"{POLICY}:3:")
    expect(run("systemctl status --no-pager -n 0 enforcer | grep Status:"), 0, "enforcing the last good policy")
    expect(run(f"sed -i 's/dney/deny/' {POLICY} && systemctl reload enforcer"), 0)
    until("the daemon to notice", lambda: policy().get("error", "?") is None)
    refused("banner.ads.example")
    good("the files have errors, and nobody got through: the daemon keeps a copy of the policy that is in force")


def forgetful():
    """Shows that the reboot's test can fail."""
    if not (MEMORY / "rebooted").exists():
        heading("The same without the state file: this is what it is for")
        expect(run("systemctl stop enforcer && rm /var/lib/enforcer/state.json"), 0)
        (MEMORY / "early").touch()
        return go_on_after_reboot("rebooted")
    (MEMORY / "rebooted").unlink()
    until("the daemon to enforce", enforcing)
    counts = early()
    tell("output", json.dumps(counts))
    if counts.get("reached", 0) == 0:
        raise NotAsNarrated("without the state file the early client should have got through once")
    good("the address that was written down got through until its name was asked for again")


def upgrade():
    heading("An upgrade under load")
    before = ask("status")
    with hammered():
        expect(run(install_command(package("enforcer_*+upgrade-1_amd64.deb"))), 0)
        until("the new daemon to answer", enforcing)
    if ask("status")["pid"] == before["pid"]:
        raise NotAsNarrated("the daemon was not restarted")
    expect(run("dpkg-query -W enforcer"), 0, "+upgrade")
    expect(run(f"cat {POLICY}"), 0, "no-ads")
    good("nobody got through, and the configuration is as it was")

    heading("An upgrade from a version with other maps")
    expect(run("cd /sys/fs/bpf/enforcer && mv v* v0"), 0)
    with hammered():
        expect(run("systemctl restart enforcer"), 0)
        until("the new daemon to answer", enforcing)
    if (PINS / "v0").exists():
        raise NotAsNarrated("the old version's pins are still there")
    good("its programs refuse until the new ones have their rules")


def stop():
    heading("Stop means stop")
    expect(run("systemctl stop enforcer"), 0)
    until("connects to be free", lambda: quietly("curl -sS http://banner.ads.example/")[0] == 0)
    reached("banner.ads.example")
    if PINS.exists():
        raise NotAsNarrated("pins are left")
    expect(run("systemctl start enforcer"), 0)
    refused("banner.ads.example")
    good("`systemctl stop` lets go (on_stop = \"release\"), `systemctl start` enforces again")


def keep():
    heading('With on_stop = "keep" it goes on')
    expect(run("echo 'on_stop = \"keep\"' >> /etc/enforcer/enforcer.toml && systemctl restart enforcer"), 0)
    refused("banner.ads.example")
    expect(run("systemctl stop enforcer"), 0)
    refused("banner.ads.example")
    expect(run("enforcer release"), 0, "released")
    until("connects to be free", lambda: quietly("curl -sS http://banner.ads.example/")[0] == 0)
    expect(run("systemctl start enforcer"), 0)
    good("until `enforcer release`, or the next start")


def resolved():
    heading("Names that only systemd-resolved knows")
    Path("/etc/systemd/resolved.conf.d").mkdir(exist_ok=True)
    Path("/etc/systemd/resolved.conf.d/story.conf").write_text("[Resolve]\nDNS=10.99.0.2\nDNSSEC=no\n", encoding="utf-8")
    expect(run("systemctl unmask --quiet systemd-resolved && systemctl start systemd-resolved"), 0)
    until("the feed to be heard", lambda: resolved_link() == "connected")
    expect(run("resolvectl query news.example | head -n 1"), 0, "192.0.2.10")
    expect(run(f"sed -i 's/.ads.example/.ads.example\", \"news.example/' {POLICY}"), 0)
    until("the name to count", lambda: policy().get("patterns") == 2)
    expect(run("resolvectl query news.example | grep -E '192.0.2|from:'"), 0, "192.0.2.10", "cache")
    until("the name to be denied", lambda: denied("news.example"))
    refused("news.example")
    expect(run("enforcer status | grep resolved"), 0, "connected")
    exposure(run("systemd-analyze security --no-pager enforcer-resolved | tail -n 1"), 2.5)
    expect(run("systemctl restart systemd-resolved"), 0)
    until("the feed to be heard again", lambda: resolved_link() == "connected")
    expect(run(f"sed -i 's/, \"news.example\"//' {POLICY} && systemctl mask --quiet --now systemd-resolved"), 0)
    until("it to be noticed", lambda: resolved_link() == "absent")
    until("the name to be free", lambda: quietly("curl -sS http://news.example/")[0] == 0)
    good("what it answers from its cache, or learnt by DNS over TLS, it tells the daemon itself")


def resolved_link():
    return (ask("status") or {}).get("dns", {}).get("resolved", {}).get("link")


def remove():
    heading("Remove: the configuration stays, and nothing is refused any more")
    expect(run("dpkg -r enforcer"), 0)
    until("connects to be free", lambda: quietly("curl -sS http://banner.ads.example/")[0] == 0)
    reached("banner.ads.example")
    expect(run(f"ls {POLICY} /etc/enforcer/enforcer.toml /etc/enforcer/policies.d/00-default.toml"), 0)
    if PINS.exists():
        raise NotAsNarrated("pins are left")
    good("removed")


def purge():
    heading("Purge: nothing is left")
    expect(run("dpkg -P enforcer"), 0)
    left = [path for pattern in TRACES for path in glob.glob(pattern)]
    if left:
        raise NotAsNarrated(f"left: {', '.join(left)}")
    if quietly("systemctl cat enforcer")[0] == 0:
        raise NotAsNarrated("systemd still knows the unit")
    reached("banner.ads.example")
    good("neither files nor pins nor units")


def rpm():
    heading("The rpm, by rpm's own scriptlets")
    rpm_command = "rpm"
    if shutil.which("dpkg"):
        rpm_command = "rpm --dbpath /var/lib/story/rpm"
        note("on Debian, where an rpm finds nothing of what it depends on: --nodeps")
    expect(run(f"{rpm_command} -i --nodeps {package('enforcer-*[0-9]-1.x86_64.rpm')}"), 0)
    until("the daemon to enforce", enforcing)
    expect(run("systemctl is-enabled enforcer"), 0, "enabled")
    write_policy()
    refused("banner.ads.example")
    expect(run("echo '# mine' >> /etc/enforcer/enforcer.toml"), 0)
    with hammered():
        expect(run(f"{rpm_command} -U --nodeps {package('enforcer-*+upgrade-1.x86_64.rpm')}"), 0)
        until("the new daemon to answer", enforcing)
    expect(run("tail -n 1 /etc/enforcer/enforcer.toml"), 0, "# mine")
    expect(run(f"{rpm_command} -V --nodeps enforcer"), 1, "c /etc/enforcer/enforcer.toml")
    expect(run(f"{rpm_command} -e enforcer"), 0)
    until("connects to be free", lambda: quietly("curl -sS http://banner.ads.example/")[0] == 0)
    expect(run("ls /etc/enforcer/enforcer.toml.rpmsave"), 0)
    if PINS.exists() or active():
        raise NotAsNarrated("something still runs, or pins are left")
    good("installed, upgraded without a gap, erased; the edited configuration is kept as .rpmsave")


def without_bpf():
    heading("A kernel whose list of LSMs lacks bpf, as Ubuntu's")
    expect(run("cat /sys/kernel/security/lsm"), 0)
    expect(run(install_command(package("enforcer_*[0-9]-1_amd64.deb"))), 0)
    until("the daemon to enforce", enforcing)
    expect(run("enforcer status"), 0, "enforcing: cgroup hooks", "not by LSM", "lsm=", ",bpf")
    write_policy()
    refused("banner.ads.example")
    expect(run("journalctl -q -u enforcer -o cat -p warning"), 0, "lsm=")
    good("it says so, enforces by cgroup hooks, and says which line of the kernel's command line switches the LSM on")


CHAPTERS = {
    chapter.__name__: chapter
    for chapter in (
        install, deny, edit, mistake, restart, reboot, broken, forgetful, upgrade, stop, keep, resolved, remove, purge, rpm,
        without_bpf,
    )
}  # fmt: skip


class Reboot(Exception):
    pass


def go_on_after_reboot(flag):
    (MEMORY / flag).touch()
    raise Reboot


def play(names):
    """A chapter that fails does not keep the next ones from being played."""
    while names:
        (MEMORY / "chapters").write_text("\n".join(names))
        try:
            CHAPTERS[names[0]]()
        except Reboot:
            raise
        except Exception as error:
            with open(MEMORY / "failed", "a", encoding="utf-8") as failed:
                failed.write(f"{names[0]}\n")
            tell("failed", str(error) if isinstance(error, NotAsNarrated) else repr(error))
            tell("output", quietly("timeout 10 enforcer status")[1])
            tell("output", quietly("journalctl -q --no-pager -b -u enforcer -n 30 | tail -n 30")[1])
        names = names[1:]
    (MEMORY / "chapters").unlink(missing_ok=True)


def main():
    os.chdir("/root")
    MEMORY.mkdir(exist_ok=True)
    remaining, failed = MEMORY / "chapters", MEMORY / "failed"
    if sys.argv[1:]:
        names = sys.argv[1:]
        failed.unlink(missing_ok=True)
    elif remaining.exists():
        names = remaining.read_text().split()
        if not (MEMORY / "rebooted").exists():
            tell("failed", f"the machine rebooted by itself during `{names[0]}`")
            return 1
    else:
        names = (HERE.parent / "chapters").read_text().split()
    try:
        play(names)
    except Reboot:
        return REBOOTING
    if failed.exists():
        tell("failed", f"chapters: {', '.join(failed.read_text().split())}")
        return 1
    tell("end", "the story went as narrated")
    return 0


status = main()
sys.stdout.flush()
if os.environ.get("STORY_OWNS_MACHINE"):
    subprocess.run(["systemctl", "reboot" if status == REBOOTING else "poweroff"] + ["-ff"] * (status != REBOOTING), check=False)
    sys.exit(0)
sys.exit(status)
