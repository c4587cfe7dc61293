# `make demo` on a fresh Debian 12 or Ubuntu 24.04, as root, shows everything.

# Limits `make bench` to some benchmarks: make bench ONLY="launch wake"
ONLY ?=

# How often `make soak` suspends and wakes.
CYCLES ?= 1000

# Which history `make sim` plays: make sim SEED=7
SEED ?= 1

# How long `make fuzz` stays with each target, and with which: make fuzz SECONDS=3600 FUZZ=snapshot:fuzz::layer::a_layer_may_be_anything
SECONDS ?= 60
FUZZ ?= \
	edge:fuzz::a_client_sees_no_more_than_the_app_said \
	edge:fuzz::a_head_lets_nobody_in_but_with_the_token \
	edge:fuzz::a_token_may_be_anything \
	edge:fuzz::an_app_sees_one_truth_and_nothing_of_the_edge \
	guest-protocol:a_host_reads_anything_from_an_agent \
	guest-protocol:an_agent_reads_anything_from_a_host \
	guest-protocol:either_side_reads_anything_of_a_shell \
	snapshot:fuzz::a_handshake_may_be_anything \
	snapshot:fuzz::layer::a_layer_may_be_anything \
	snapshot:fuzz::a_list_of_touched_pages_may_be_anything \
	snapshot:fuzz::a_manifest_may_be_anything \
	vmm:fuzz::a_line_of_qemu_may_be_anything \
	vmm:fuzz::a_record_may_be_anything \
	vmm:fuzz::an_answer_of_firecracker_may_be_anything

.PHONY: setup setup-tests setup-bench dist demo test sim lint fuzz bench soak clean

setup:
	@scripts/setup.sh

setup-tests:
	@scripts/setup.sh tests

setup-bench:
	@scripts/setup.sh bench

# The server and what lies beside it, optimised as a whole and for what it does most: target/dist/pilotlight. Half an hour on
# two processors.
dist: setup
	scripts/dist.sh

demo: setup
	@target/venv/bin/python scripts/demo.py

# The programs are run as set-up built them: `cargo run` would want other features of their dependencies, and build those
# once more.
test: setup-tests
	cargo test --release --workspace
	target/release/sim-failpoints histories
	target/release/conformance
	target/release/e2e

# One history of those that `make test` plays, and everything that happens in it.
sim: setup-tests
	target/release/sim-failpoints history $(SEED)

lint:
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo clippy --release -p failpoint --features armed -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; else echo "cargo-deny is not installed: skipped"; fi
	cargo run --release -p xtask -- check

# Guided by coverage, with libFuzzer and the address sanitizer: cargo install cargo-bolero --no-default-features --features
# libfuzzer. What is learnt stays in target; what fails lands beside the code, where `make test` tries it from then on.
fuzz:
	@for each in $(FUZZ); do \
		corpus="$(CURDIR)/target/fuzz/corpus/$${each##*:}" && mkdir -p "$$corpus" && \
		cargo bolero test -p "$${each%%:*}" --profile release --rustc-bootstrap --corpus-dir "$$corpus" \
			-T $(SECONDS)s "$${each#*:}" || exit 1; \
	done

# Of the programs of `make dist`.
bench: setup-bench
	scripts/dist.sh sim
	PILOTLIGHT=target/dist/pilotlight target/release/bench $(ONLY)

# Stops with the first ten failures; a cycle takes some seconds on an emulated guest.
soak: setup-tests
	target/release/soak $(CYCLES)

# What make setup put into PILOTLIGHT_ASSETS stays: other checkouts use it too.
clean:
	cargo clean
