# Tasks for vmsnap's sources. `make help` lists them.

CARGO ?= cargo
FUZZ_SECONDS ?= 30
export CARGO

# Live tests mostly wait for libvirt and QEMU, so at least four run at a time.
RUST_TEST_THREADS ?= $(shell cores=$$(nproc); echo $$((cores > 4 ? cores : 4)))
export RUST_TEST_THREADS

# Runs after live tests, also after failed ones. Leftovers are a failure.
AND_NOTHING_LEFT = status=$$?; $(CARGO) test --locked --test live_leftovers || status=1; exit $$status

.DEFAULT_GOAL := help
.PHONY: help build demo test check fmt lint scripts tidy unit it deny live servers bench fresh package fuzz

# One target at a time: they share cargo's lock and the cores.
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the program, target/release/vmsnap
	@scripts/setup.sh build
	$(CARGO) build --release --locked

demo: ## a full and an incremental backup of a temporary domain, restored and compared
	@scripts/setup.sh build demo
	$(CARGO) run --release --locked -- demo

test: ## everything: format, lints and all tests, also on real domains (as root)
	@scripts/setup.sh build demo test
	@$(MAKE) --no-print-directory fmt lint scripts
	$(CARGO) test --locked --no-default-features --test it
	$(CARGO) test --locked; $(AND_NOTHING_LEFT)

check: fmt lint scripts tidy unit it deny ## all that needs no domain: format, lints, scripts, rules, unit tests, simulated hypervisor, dependencies

fmt: ## whether the sources are formatted
	$(CARGO) fmt --check

lint: ## clippy, with and without libvirt
	@scripts/setup.sh build
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --all-targets --no-default-features -- -D warnings
	$(CARGO) clippy --locked --test garage -- -D warnings

scripts: ## shellcheck on every shell script
	@scripts/setup.sh check
	find . \( -name target -o -name .git \) -prune -o \( -name '*.sh' -o -path ./.ci/run \) -type f -print0 | xargs -0 shellcheck

tidy: ## the rules of ARCHITECTURE.md: imports, unsafe in one file, file lengths
	$(CARGO) test --locked --test tidy

unit: ## the unit tests
	@scripts/setup.sh build
	$(CARGO) test --locked --lib --bins

deny: ## licences, sources and versions of the dependencies; advisories if their database can be reached
	@scripts/setup.sh build
	@scripts/deny.sh

it: ## the verbs on a simulated hypervisor
	@scripts/setup.sh build
	$(CARGO) test --locked --test it

live: ## only the tests on real domains (as root), and whether they left anything
	@scripts/setup.sh build demo test
	$(CARGO) test --locked --test live; $(AND_NOTHING_LEFT)

servers: ## the tests with S3 servers: moto, and garage, which the first run builds (half an hour on two cores)
	@scripts/setup.sh build test
	$(CARGO) test --locked --test interop s3::
	$(CARGO) test --locked --test garage

package: ## target/package: a .deb, an .rpm and the static rescue program, built on Debian 12 or Ubuntu 22.04
	@scripts/setup.sh build package
	@scripts/package.sh

bench: ## vmsnap beside virtnbdbackup, qemu-img and nbdcopy on temporary domains (as root); BENCH_SIZE (GiB, 4), BENCH_ROUNDS (3), BENCH_WORK, BENCH_TOOLS
	@scripts/setup.sh build demo test
	@scripts/setup.sh bench || echo "Missing programs are left out." >&2
	$(CARGO) bench --locked --bench peers

fresh: ## demo, package and some tests in bare roots of Debian 12 and 13, or others (as root); FRESH_TESTS (some, all, none), FRESH_ROOTS (bookworm trixie)
	@scripts/fresh.sh

fuzz: ## each fuzz target for FUZZ_SECONDS (30); needs cargo-fuzz and a nightly Rust
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }
	@for target in $$($(CARGO) +nightly fuzz list); do \
		$(CARGO) +nightly fuzz run "$$target" -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done
