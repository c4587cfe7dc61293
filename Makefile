# `make demo` on a fresh Debian 12 or Ubuntu 24.04, as root, shows everything.

# Limits `make bench` to some benchmarks: make bench ONLY="launch wake"
ONLY ?=

.PHONY: setup demo test lint bench clean

setup:
	@scripts/setup.sh

demo: setup
	@target/venv/bin/python scripts/demo.py

test: setup
	cargo test --release --workspace
	cargo run --release -p e2e

lint:
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; else echo "cargo-deny is not installed: skipped"; fi
	cargo run --release -p xtask -- check

bench: setup
	cargo run --release -p e2e --bin bench -- $(ONLY)

# What make setup put into PILOTLIGHT_ASSETS stays: other checkouts use it too.
clean:
	cargo clean
