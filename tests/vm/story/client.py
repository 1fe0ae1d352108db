"""client.py ADDRESS NAME: connects again and again, to the address as somebody wrote it down, and to the name. Prints
what came of that after some attempts, and on SIGTERM."""

import collections
import errno
import json
import signal
import socket
import sys

counts = collections.Counter()
going = True


def stop(*_):
    global going
    going = False


def attempt(address):
    with socket.socket() as client:
        client.settimeout(2)
        try:
            client.connect((address, 80))
            counts["reached"] += 1
        except PermissionError:
            counts["refused"] += 1
        except OSError as error:
            counts[errno.errorcode.get(error.errno, str(error))] += 1


def by_name(name):
    try:
        attempt(socket.gethostbyname(name))
    except socket.gaierror as error:
        counts[f"lookup: {error.strerror}"] += 1


signal.signal(signal.SIGTERM, stop)
address, name = sys.argv[1:]
rounds = 0
while going:
    attempt(address)
    by_name(name)
    rounds += 1
    if rounds == 20:
        print(json.dumps(counts), flush=True)
print(json.dumps(counts), flush=True)
