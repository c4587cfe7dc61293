#!/usr/bin/env bash
# Builds the programs for servers that stay, into target/dist: optimised as a whole, and laid out by what the edge was seen
# to do while `sim train` sent a mix of traffic through it (profile-guided optimisation). The second makes a small request a
# third cheaper for the edge. Arguments are more programs of the workspace to build in the same way.
#
# A profile is read with llvm-profdata, which must be of the compiler's own LLVM: rustup has it as a component, Debian as a
# package for each version. Where neither is to be had, the programs are built without a profile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly triple=$(rustc -vV | sed -n 's/^host: //p')
readonly llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
readonly programs=(pilotlight pilotlight-pager "$@")
readonly built=target/profiled/$triple/dist
readonly profile=$PWD/target/profiled/edge.profdata

find_profdata() {
  local own
  own=$(rustc --print sysroot)/lib/rustlib/$triple/bin/llvm-profdata
  if [[ -x $own ]]; then echo "$own"; else command -v "llvm-profdata-$llvm"; fi
}

# From where it is to be had first. What fails here is no failure: the next line tries the next place.
get_profdata() {
  find_profdata && return
  if command -v rustup >/dev/null; then timeout 120 rustup component add llvm-tools >&2 || true; fi
  find_profdata && return
  DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "llvm-$llvm" >&2 ||
    true
  find_profdata
}

# build FLAGS PROGRAM...: the crates are always the same ones, as a profile is of a crate with the features that it had. With a
# target named, the flags are not for what runs during the build.
build() {
  # Encoded, because the flag has a path in it, which may have a space.
  local others=${RUSTFLAGS:+${RUSTFLAGS// /$'\x1f'}$'\x1f'}
  CARGO_ENCODED_RUSTFLAGS=$others$1 cargo build --profile dist --workspace --exclude guest --target "$triple" \
    --target-dir target/profiled "${@:2}"
}

readonly chosen=("${programs[@]/#/--bin=}")
if ! profdata=$(get_profdata); then
  echo "dist: there is no llvm-profdata for LLVM $llvm; building without a profile" >&2
  exec cargo build --profile dist --workspace --exclude guest "${chosen[@]}"
fi
build -Cprofile-generate --bin=sim
rm -f target/profiled/*.profraw
LLVM_PROFILE_FILE=$PWD/target/profiled/%p.profraw "$built/sim" train
"$profdata" merge --output "$profile" target/profiled/*.profraw
build "-Cprofile-use=$profile" "${chosen[@]}"
mkdir -p target/dist
for program in "${programs[@]}"; do
  install "$built/$program" "target/dist/$program"
done
