# enforcer: the commands that people type. `make help` lists them.

KERNELS ?= 6.1 6.12
TEST ?=
export PATH := $(CURDIR)/.lab/tools/bin:$(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin

.PHONY: help setup build test unit vm native bench fuzz demo packages reproduce story acceptance lint clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install what a fresh Debian 12 lacks (nothing, if nothing is lacking)
	@scripts/setup

build: setup ## compile the eBPF object and embed it in target/release/enforcer
	cargo build --locked --release -p enforcer

test: setup ## run every test: unit, property, fuzz, and in VMs with a real kernel LSM
	@scripts/test

unit: setup ## run the unit and property tests only
	cargo test --locked --workspace --profile lab

vm: setup ## run the kernel tests in VMs: make vm KERNELS="6.1 6.12 7.1" TEST=fast_open
	@tests/vm/lab run --kernels "$(KERNELS)" $(TEST)

native: setup ## run the tests that need no VM in a container on this kernel (root): make native TEST=race
	@tests/vm/lab run --kernels native $(TEST)

bench: setup ## measure what enforcing costs on this machine (root): make bench BENCH=scale
	@tests/vm/lab bench $(BENCH)

fuzz: setup ## fuzz every parser: make fuzz SECONDS=600
	@tests/fuzz/run $(or $(SECONDS),60)

demo: setup ## watch it work in a full Debian VM
	@tests/vm/lab demo

packages: setup ## build the deb and the rpm into dist/, and check them
	@packaging/build
	@packaging/check

reproduce: packages ## build the packages once more, from another directory, and compare (twice the time of packages)
	@packaging/reproduce

story: setup ## install, use, reboot, upgrade and purge the packages in a VM: make story CHAPTERS="install deny" BOOTS=20
	@tests/vm/lab story --boots $(or $(BOOTS),1) $(CHAPTERS)

acceptance: setup ## the same under Vagrant, in a box made from Debian's packages: make acceptance BOOTS=20
	@vagrant/acceptance $(or $(BOOTS),1)

lint: ## formatting, clippy, licences and advisories
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny check; else echo "cargo-deny is not installed: not checked"; fi

clean: ## remove everything that was built or downloaded
	rm -rf target enforcer-ebpf/target .lab dist
