#!/usr/bin/env bash
# Packs the initramfs of a microVM: the guest agent as /init and the kernel modules it loads.
#
#   guest-image.sh AGENT KERNELDIR OUT
#
# AGENT is the static agent binary, KERNELDIR what guest-kernel.sh made, OUT the initramfs to write. The archive is
# uncompressed (an emulated CPU would unpack it at every boot) and the same inputs give the same bytes. Nothing is
# done when OUT is younger than its inputs.
set -euo pipefail

fail() { echo "guest-image: $*" >&2; exit 1; }
say() { echo "guest-image: $*"; }

[[ $# -eq 3 ]] || fail "usage: guest-image.sh AGENT KERNELDIR OUT"
agent=$1 kernel=$2 out=$3
[[ -s $agent ]] || fail "there is no agent at $agent; build the crate guest as a static binary first"
[[ -s $kernel/modules/order ]] || fail "there are no kernel modules in $kernel; run guest-kernel.sh $kernel first"
command -v cpio >/dev/null || fail "cpio is missing; install it with: apt-get install cpio"
if readelf -l "$agent" 2>/dev/null | grep -q INTERP; then
  fail "$agent is not static; build it with RUSTFLAGS=\"-C target-feature=+crt-static\""
fi

if [[ -s $out && -z $(find "$agent" "$kernel/modules" "$0" -newer "$out" -print -quit) ]]; then
  say "$out is up to date"
  exit 0
fi

mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree

say "packing $agent and $(wc -l <"$kernel/modules/order") modules"
mkdir -p "$tree"/{dev,proc,sys,run,lower,scratch,rootfs,modules}
install -m 0755 "$agent" "$tree/init"
install -m 0644 "$kernel/modules/order" "$tree/modules/order"
while read -r module; do
  install -m 0644 "$kernel/modules/$module" "$tree/modules/$module"
done <"$kernel/modules/order"
find "$tree" -exec touch -h -d @0 {} +
(cd "$tree" && find . -mindepth 1 -print0 | LC_ALL=C sort -z |
  cpio --null --create --format=newc --reproducible --owner=+0:+0 --quiet) >"$work/initramfs"
mv "$work/initramfs" "$out"
say "$out is $(stat -c %s "$out") bytes"
