#!/usr/bin/env bash
# Prepares a fresh Debian 12 (or later) or Ubuntu 24.04 machine for Pilotlight: packages, guest kernel, binaries, guest
# image, base images, and AWS's SDK for Python for the demo. Run it as often as you like: what is there stays.
#
# `setup.sh tests` also makes what the tests and the benchmarks need beside that: their programs and more AWS clients.
#
# `setup.sh bench` makes all of that, and what the edge is measured beside and with: nginx, wrk and h2load.
#
# PILOTLIGHT_ASSETS names the directory for what all checkouts share; /var/lib/pilotlight/assets unless set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly assets=${PILOTLIGHT_ASSETS:-/var/lib/pilotlight/assets}
readonly triple=$(uname -m)-unknown-linux-gnu
readonly boto3=1.44.5
readonly for_tests=${1:-}
readonly awscli=1.46.3
readonly javascript_sdk=3.1131.0
readonly grpcio=1.85.3 websockets=17.4 ws=8.23.0
packages=(
  # runs microVMs
  qemu-system-x86 nftables iproute2 kmod e2fsprogs
  # builds their images
  buildah erofs-utils mmdebstrap debian-archive-keyring util-linux cpio xz-utils zstd lz4 ca-certificates
  # builds Pilotlight
  gcc libc6-dev pkg-config
  # runs the demo: Python resolves *.localhost only with libnss-myhostname
  python3 python3-venv libnss-myhostname
)
steps=6
if [[ $for_tests ]]; then
  # emulates guests of another architecture; an ACME server
  packages+=(qemu-system-arm pebble)
  # clients of endpoints; Ubuntu has no browser that starts without its package service
  packages+=(curl)
  grep -q '^ID=ubuntu$' /etc/os-release || packages+=(chromium-headless-shell libnss3-tools)
  # A Node.js from elsewhere comes with an npm that Debian's does not go with.
  command -v node >/dev/null || packages+=(nodejs)
  command -v npm >/dev/null || packages+=(npm)
  steps=9
fi
[[ $for_tests != bench ]] || packages+=(nginx-light wrk nghttp2-client)
readonly packages steps
step=0

# The last line of a failed setup: one sentence that says what to do.
fail() { printf '\nsetup: %s\n' "$*" >&2; exit 1; }

# run WHAT ADVICE COMMAND...: one step. Its output is in a log, whose end is shown when it fails.
run() {
  local what=$1 advice=$2 begin=$EPOCHREALTIME
  shift 2
  step=$((step + 1))
  printf '[%d/%d] %s … ' "$step" "$steps" "$what"
  # In the background, so that `set -e` holds inside, which it would not in a condition.
  ("$@") >"$log" 2>&1 &
  if ! wait $!; then
    printf 'failed\n\n' >&2
    tail -n 20 "$log" >&2
    fail "$advice"
  fi
  LC_ALL=C awk -v from="$begin" -v to="$EPOCHREALTIME" 'BEGIN { printf "done (%.1f s)\n", to - from }'
}

# stamped STAMP KEY: is what was made from KEY there?
stamped() { [[ -f $1 && $(<"$1") == "$2" ]]; }

install_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    [[ " $installed " == *" $package "* ]] || missing+=("$package")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -q update
  # Not every release has it; without, the tests that need it say so.
  if [[ -z $(apt-cache --names-only search '^pebble$') ]]; then
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | grep -vx pebble)
    [[ ${#missing[@]} -gt 0 ]] || return 0
  fi
  apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"
  # Only its program is wanted; Debian's package starts a server.
  if [[ " ${missing[*]} " == *" nginx-light "* ]] && [[ -d /run/systemd/system ]]; then
    systemctl disable --now nginx
  fi
}

build_binaries() {
  local crates=(-p pilotlight -p snapshot)
  # All at once, as `cargo test` will: a crate alone may want other features of what it depends on, and build it again.
  [[ ! $for_tests ]] || crates=(--workspace --exclude guest)
  cargo build --release --bins "${crates[@]}"
  # The servers that die where the fault test and the histories say. The same crates as above, so that what they depend on
  # is built once.
  [[ ! $for_tests ]] ||
    cargo build --release --bin pilotlight-failpoints --bin sim-failpoints \
      --features pilotlight/failpoints,sim/failpoints "${crates[@]}"
  # Static, because inside a microVM there is nothing to link to; in a directory of its own, because the flags differ.
  local flags=CARGO_TARGET_${triple//-/_}_RUSTFLAGS
  env "${flags^^}=-C target-feature=+crt-static" \
    cargo build --release -p guest --target "$triple" --target-dir target/guest
}

# This checkout's own is what the demo and the tests use; the server finds the copy by itself.
make_guest_image() {
  scripts/guest-image.sh "target/guest/$triple/release/guest" "$assets/kernel" target/guest/initramfs.img
  cmp --silent target/guest/initramfs.img "$assets/initramfs.img" && return
  cp target/guest/initramfs.img "$assets/initramfs.img.new"
  mv "$assets/initramfs.img.new" "$assets/initramfs.img"
}

make_venv() {
  local key
  key="boto3==$boto3 $(/usr/bin/python3 --version)"
  ! stamped target/venv/pilotlight-stamp "$key" || return 0
  rm -rf target/venv
  # Debian's own interpreter: another one earlier on PATH may lack the venv module or go away.
  /usr/bin/python3 -m venv target/venv
  target/venv/bin/pip install --quiet --disable-pip-version-check "boto3==$boto3"
  target/venv/bin/python -c 'import boto3; boto3.client("lambda-microvms", region_name="us-east-1")'
  echo "$key" >target/venv/pilotlight-stamp
}

# It brings its own botocore; boto3's stays what it was.
add_aws_cli() {
  ! stamped target/venv/pilotlight-awscli "$awscli" || return 0
  target/venv/bin/pip install --quiet --disable-pip-version-check "awscli==$awscli"
  target/venv/bin/python -m awscli --version
  echo "$awscli" >target/venv/pilotlight-awscli
}

# For the tests' clients, and as wheels for the servers in their image, whose Python is that of Debian 12.
add_protocols() {
  local key="grpcio==$grpcio websockets==$websockets"
  ! stamped target/venv/pilotlight-protocols "$key" || return 0
  rm -rf target/wheels
  # shellcheck disable=SC2086 # two words
  target/venv/bin/python -m pip install --quiet --disable-pip-version-check $key
  # shellcheck disable=SC2086
  target/venv/bin/python -m pip download --quiet --disable-pip-version-check --dest target/wheels --only-binary :all: \
    --python-version 3.11 --platform manylinux2014_x86_64 $key
  echo "$key" >target/venv/pilotlight-protocols
}

# The tests ask of Node.js what Debian 12 has, and of the network only the registry.
make_node_modules() {
  local key
  key="@aws-sdk/client-lambda-microvms@$javascript_sdk ws@$ws $(node --version)"
  ! stamped target/node/pilotlight-stamp "$key" || return 0
  rm -rf target/node
  mkdir target/node
  echo '{"private": true}' >target/node/package.json
  npm install --prefix target/node --no-audit --no-fund --omit=dev --ignore-scripts --save-exact \
    "@aws-sdk/client-lambda-microvms@$javascript_sdk" "ws@$ws"
  (cd target/node && node -e 'new (require("@aws-sdk/client-lambda-microvms").LambdaMicrovmsClient)({region: "us-east-1"})')
  echo "$key" >target/node/pilotlight-stamp
}

[[ $EUID -eq 0 ]] || fail "run it as root, for example: sudo -E make setup"
command -v apt-get >/dev/null || fail "this is not Debian or Ubuntu (no apt-get): install ${packages[*]} with your package manager and see scripts/setup.sh"
[[ $(uname -m) == x86_64 ]] || fail "this machine is $(uname -m); Pilotlight runs on x86_64 for now"
PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin
command -v cargo >/dev/null || fail "install Rust with rustup (https://rustup.rs), then run make setup again"

mkdir -p "$assets" target
exec 9>"$assets/setup.lock"
flock --nonblock 9 || { echo "setup: another setup is running; waiting for it"; flock 9; }
log=$(mktemp "${TMPDIR:-/tmp}/pilotlight-setup-XXXXXX")
trap 'rm -f "$log"' EXIT
installed=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' | awk '$1 == "installed" { printf "%s ", $2 }')

run "Debian packages" "apt-get failed as shown above: check the network and /etc/apt, then run make setup again" \
  install_packages
run "guest kernel in $assets/kernel" "the guest kernel could not be fetched: check the network, then run make setup again" \
  scripts/guest-kernel.sh "$assets/kernel"
run "Pilotlight's programs (minutes the first time)" "the build failed as shown above: check that Rust is current (rustup update)" \
  build_binaries
run "guest image" "the guest image could not be packed: remove target/guest and run make setup again" \
  make_guest_image
run "base images in $assets/storage (two minutes the first time)" "the base images could not be made: check the network, then run make setup again" \
  scripts/base-images.sh "$assets/storage"
run "AWS's SDK for Python in target/venv" "pip could not install boto3 $boto3: check the network, then run make setup again" \
  make_venv
[[ $for_tests ]] || exit 0
run "AWS's command line in target/venv" "pip could not install awscli $awscli: check the network, then try again" \
  add_aws_cli
run "gRPC and WebSocket for Python in target/venv and target/wheels" \
  "pip could not fetch grpcio $grpcio and websockets $websockets: check the network, then try again" \
  add_protocols
run "AWS's SDK for JavaScript and a WebSocket client in target/node" \
  "npm could not install @aws-sdk/client-lambda-microvms $javascript_sdk and ws $ws: check the network, then try again" \
  make_node_modules
