"""The demo: what happens in which order, and what must come of it. Runs in the guest."""

import os
import subprocess
import sys
from contextlib import contextmanager

from stage import ENVIRONMENT, NotAsNarrated, ask, expect, good, heading, note, quietly, run, tell, until

POLICY = "/etc/enforcer/policies.d/50-trackers.toml"
COULD_NOT_CONNECT = 7  # curl's exit code


def denied(name):
    return any(name in entry["names"] for entry in ask("denied") or [])


def refused(name):
    result = run(f"curl -sS http://{name}/")
    expect(result, COULD_NOT_CONNECT, "Failed to connect")


def reached(name):
    result = run(f"curl -sS http://{name}/")
    expect(result, 0, f"Hello, this is {name}.")


def looked_up(name):
    """A lookup, as every program does it first."""
    expect(run(f"getent hosts {name}"), 0, name)
    until(f"{name} to be denied", lambda: denied(name))


def last_denial(name):
    """The journal's newest denial, once it is the wanted one."""
    command = "journalctl -q -t enforcer -o cat -n 1 ENFORCER_VERDICT=deny"
    until("the event", lambda: name in quietly(command)[1])
    expect(run(command), 0, "DENY", name)


@contextmanager
def following(command):
    """A command in the background that follows the events into a file, and does so already."""
    tell("command", f"{command} &")
    file = command.rpartition(" ")[2]
    # Forced colours are for the eyes, not for a parser.
    environment = os.environ if "--json" in command else ENVIRONMENT
    with subprocess.Popen(f"exec {command}", shell=True, env=environment) as follower:
        try:
            # Nothing says when it follows; an event that arrives does.
            until("an event to arrive", lambda: quietly("getent hosts news.example") and os.path.getsize(file) > 0)
            yield
        finally:
            follower.kill()


def it_starts():
    heading("The service")
    expect(run("systemctl -q enable --now enforcer"), 0)
    status = run("systemctl status -n 0 enforcer | grep -E 'enforcer.service -|Active:|Status:'")
    expect(status, 0, "active (running)", "enforcing by lsm")
    expect(run("enforcer status"), 0, "enforcing: LSM")
    good("the kernel's LSM enforces, and the canary proves it: a denied address was tried, and refused")


def everything_is_allowed():
    heading("No rule yet: every name can be reached")
    reached("news.example")
    reached("px.tracker.example")
    good("both reached")


def a_rule_denies():
    heading("A rule: nobody connects to .tracker.example")
    rule = '[[rule]]\nname   = "no-trackers"\naction = "deny"\nhosts  = [".tracker.example"]'
    expect(run(f"cat > {POLICY} <<.\n{rule}\n."), 0)
    took = until("the rule to count", lambda: denied("px.tracker.example"))
    note(f"in force {took:.1f} s later without a restart, also for the address that was looked up before")
    looked_up("px.tracker.example")
    expect(run("enforcer denied"), 0, "px.tracker.example", "no-trackers")
    refused("px.tracker.example")
    connect = "import socket; socket.create_connection(('px.tracker.example', 80))"
    expect(run(f'python3 -c "{connect}" |& tail -n 1'), 0, "[Errno 1] Operation not permitted")
    last_denial("px.tracker.example")
    reached("news.example")
    good("refused with EPERM; the event says who, where to, under which name, and by which rule")


def an_edit_counts():
    heading("The rule is edited: ads instead of trackers")
    expect(run(f"sed -i 's/trackers\\?/ads/' {POLICY}"), 0)
    took = until("the tracker to be free", lambda: not denied("px.tracker.example"))
    expect(run(f"grep -v action {POLICY}"), 0, '"no-ads"', '".ads.example"')
    reached("px.tracker.example")
    looked_up("banner.ads.example")
    refused("banner.ads.example")
    good(f"in force {took:.1f} s after the edit: the tracker can be reached again, the ads cannot")


def a_mistake_changes_nothing():
    heading("A mistake in the file changes nothing")
    expect(run(f"sed -i 's/deny/dney/' {POLICY}"), 0)
    until("the daemon to notice", lambda: ask("status")["policy"]["error"])
    expect(run("enforcer check"), 1, f"{POLICY}:", "dney")
    expect(run("enforcer status | head -n 8"), 0, "enforcing: LSM", "the policy from before them is in force")
    refused("banner.ads.example")
    expect(run(f"sed -i 's/dney/deny/' {POLICY} && enforcer check"), 0, "ok")
    until("the daemon to notice", lambda: not ask("status")["policy"]["error"])
    good("file, line and column are said; the rules from before the mistake stay in force")


def a_crash_opens_nothing():
    heading("kill -9: the kernel goes on without the daemon")
    pid = ask("status")["pid"]
    expect(run(f"kill -9 {pid}"), 0)
    refused("banner.ads.example")
    if quietly("systemctl is-active enforcer")[0] == 0:
        raise NotAsNarrated("the daemon was back before curl tried: nothing is shown")
    took = until("systemd to restart the daemon", lambda: quietly("systemctl is-active enforcer")[0] == 0)
    expect(run("systemctl show -p NRestarts -p ActiveState enforcer"), 0, "NRestarts=1", "ActiveState=active")
    expect(run("enforcer status | grep -E 'enforcing|denied  '"), 0, "enforcing: LSM", "taken over from the daemon before")
    if ask("status")["pid"] == pid:
        raise NotAsNarrated("the daemon was not killed")
    refused("banner.ads.example")
    good(f"refused while no daemon ran; {took:.1f} s later systemd had started a new one, which took over")


def events_tell():
    heading("Every connect is an event")
    with following("enforcer events > events.txt"):
        run("curl -s http://news.example/; curl -s http://banner.ads.example/")
        until("the event", lambda: quietly("grep -q banner.ads events.txt")[0] == 0)
    expect(run("grep tcp events.txt"), 0, "ALLOW", "news.example", "DENY", "banner.ads.example")
    note("the same for machines")
    with following("enforcer events --json > events.json"):
        run("curl -s http://banner.ads.example/")
        until("the event", lambda: quietly("grep -q banner.ads events.json")[0] == 0)
    result = run("grep banner.ads events.json | python3 -m json.tool")
    expect(result, 0, '"event": "net_tcp_connect"', '"verdict": "deny"', '"dstIP": "198.51.100.30"', '"rule": "no-ads"')
    good("name, address, process and rule of every connect, allowed or not")


def main():
    steps = [
        it_starts, everything_is_allowed, a_rule_denies, an_edit_counts, a_mistake_changes_nothing,
        a_crash_opens_nothing, events_tell,
    ]  # fmt: skip
    os.chdir("/root")
    try:
        for step in steps:
            step()
    except Exception as error:
        tell("failed", str(error) if isinstance(error, NotAsNarrated) else repr(error))
        tell("output", quietly("timeout 10 enforcer status")[1])
        tell("output", quietly("journalctl -q --no-pager -b -u enforcer -n 40")[1])
        sys.exit(1)
    tell("end", f"all {len(steps)} steps as narrated")


main()
