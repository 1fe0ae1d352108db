"""The demo: a full Debian VM, narrated."""


def run():
    raise NotImplementedError
