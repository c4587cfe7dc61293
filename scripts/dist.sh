#!/usr/bin/env bash
# Builds the programs for servers that stay, into target/dist: optimised as a whole, and laid out by what the edge was seen
# to do while `sim train` sent a mix of traffic through it (profile-guided optimisation). The second makes a small request a
# third cheaper for the edge. Arguments are more programs of the workspace to build in the same way.
#
# A profile is read with llvm-profdata, which must be of the compiler's own LLVM: rustup has it as a component, Debian as a
# package for each version. Where neither is to be had, the programs are built without a profile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# As setup.sh does, for who has become root without it.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

triple=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9][0-9]*\).*/\1/p')
sysroot=$(rustc --print sysroot)
[[ $triple && $llvm ]] || { echo "dist: rustc -vV does not say its host and its LLVM" >&2; exit 1; }
readonly triple llvm sysroot
readonly programs=(pilotlight pilotlight-pager "$@")
readonly chosen=("${programs[@]/#/--bin=}")
readonly dir=$PWD/target/profiled
readonly built=$dir/$triple/dist

find_profdata() {
  local own=$sysroot/lib/rustlib/$triple/bin/llvm-profdata
  if [[ -x $own ]]; then echo "$own"; else command -v "llvm-profdata-$llvm"; fi
}

# From where it is to be had first. What fails here is no failure: the next line tries the next place.
get_profdata() {
  find_profdata && return
  if [[ $sysroot == "${RUSTUP_HOME:-$HOME/.rustup}"/* ]]; then
    timeout --foreground 120 rustup component add llvm-tools >&2 || true
    find_profdata && return
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get -q update >&2 || true
  apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "llvm-$llvm" >&2 || true
  find_profdata
}

# build FLAG PROGRAM...: the crates are always the same ones, as a profile is of a crate with the features that it had. With a
# target named, the flag is not for what runs during the build. It is encoded, as its path may have spaces.
build() {
  local flags
  read -ra flags <<<"${RUSTFLAGS:-}"
  flags+=("$1")
  local IFS=$'\x1f'
  CARGO_ENCODED_RUSTFLAGS="${flags[*]}" cargo build --profile dist --workspace --exclude guest --target "$triple" \
    --target-dir "$dir" "${@:2}"
}

mkdir -p "$dir"
# Two at once would take each other's profile away.
exec {lock}>"$dir/lock"
flock "$lock"
if ! profdata=$(get_profdata); then
  cargo build --profile dist --workspace --exclude guest "${chosen[@]}"
  echo "dist: there is no llvm-profdata for LLVM $llvm; the programs are slower, as they are built without a profile" >&2
  exit
fi
build -Cprofile-generate --bin=sim
# A new profile means that all is built anew, so there is one for each program that was trained, not for each training.
if ! cmp --silent "$built/sim" "$dir/trained"; then
  rm -f "$dir"/*.profraw
  LLVM_PROFILE_FILE=$dir/%p.profraw "$built/sim" train
  # Sparse: what was not seen at all is compiled as ever. It would be taken for what is never done, and compiled for size.
  "$profdata" merge --sparse --output "$dir/edge.profdata.new" "$dir"/*.profraw
  mv "$dir/edge.profdata.new" "$dir/edge.profdata"
  install "$built/sim" "$dir/trained"
fi
build "-Cprofile-use=$dir/edge.profdata" "${chosen[@]}"
mkdir -p target/dist
for program in "${programs[@]}"; do
  install "$built/$program" "target/dist/$program.new"
  mv "target/dist/$program.new" "target/dist/$program"
done
