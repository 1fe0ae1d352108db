"""The VM lab: real kernels, one Debian root image, tests inside. `tests/vm/lab --help` is the way in."""
