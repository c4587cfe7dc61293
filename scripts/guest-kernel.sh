#!/usr/bin/env bash
# Fetches the guest kernel: Debian's cloud kernel, unpacked and never installed on this machine.
#
#   guest-kernel.sh OUTDIR
#
# OUTDIR/vmlinuz         the kernel
# OUTDIR/modules/        the modules a microVM needs, uncompressed, and `order`: their names in loading order
# OUTDIR/kernel.version  its release, such as 6.1.0-56-cloud-amd64; written last, so it says that the rest is whole
#
# Nothing is done when OUTDIR already holds a kernel; remove OUTDIR to fetch a newer one.
set -euo pipefail

# ext4 and the crc32c algorithm are built into the kernel. virtio_mmio is Firecracker's bus, virtio_pci QEMU's.
readonly modules=(virtio_mmio virtio_pci virtio_blk virtio_net virtio_rng overlay erofs)
readonly suite=bookworm

fail() { echo "guest-kernel: $*" >&2; exit 1; }
say() { echo "guest-kernel: $*"; }

[[ $# -eq 1 ]] || fail "usage: guest-kernel.sh OUTDIR"
out=$1

if [[ -s $out/kernel.version && -s $out/vmlinuz && -s $out/modules/order ]]; then
  say "$(<"$out/kernel.version") is already in $out"
  exit 0
fi

case $(uname -m) in
  x86_64) package=linux-image-cloud-amd64 ;;
  aarch64) package=linux-image-cloud-arm64 ;;
  *) fail "no cloud kernel is known for $(uname -m)" ;;
esac

for tool in mmdebstrap depmod xz zstd; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
    fail "$tool is missing; install it with: apt-get install mmdebstrap kmod xz-utils zstd"
done
PATH=$PATH:/usr/sbin:/sbin

mkdir -p "$out"
work=$(mktemp -d "$out/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT

say "fetching $package of Debian $suite"
mmdebstrap --variant=extract --include="$package" "$suite" "$work/root" >"$work/log" 2>&1 || {
  cat "$work/log" >&2
  fail "could not fetch $package; on Ubuntu install debian-archive-keyring, and check the network"
}

vmlinuz=$(find "$work/root/boot" -name 'vmlinuz-*' | sort -V | tail -n 1)
[[ -n $vmlinuz ]] || fail "the package $package holds no kernel"
release=${vmlinuz##*/vmlinuz-}
tree=$work/root/lib/modules/$release
[[ -d $tree ]] || tree=$work/root/usr/lib/modules/$release
[[ -d $tree ]] || fail "the package $package holds no modules for $release"

say "ordering the modules of $release"
depmod -b "${tree%/lib/modules/*}" "$release"
mkdir "$work/modules"
declare -A seen=()
for name in "${modules[@]}"; do
  # File names spell a module with - or _ at will.
  pattern="/${name//_/[-_]}\\.ko(\\.xz|\\.zst|\\.gz)?"
  if grep -Eq "$pattern\$" "$tree/modules.builtin"; then
    continue
  fi
  line=$(grep -E "^[^:]*$pattern:" "$tree/modules.dep") || fail "$release has no module $name"
  # modules.dep lists what a module needs from the nearest to the farthest: the farthest is loaded first.
  read -ra files <<<"${line/:/ }"
  for ((i = ${#files[@]} - 1; i >= 0; i--)); do
    file=${files[i]}
    [[ -z ${seen[$file]:-} ]] || continue
    seen[$file]=1
    base=${file##*/}
    plain=${base%.ko*}.ko
    case $base in
      *.xz) xz -dc "$tree/$file" >"$work/modules/$plain" ;;
      *.zst) zstd -qdc "$tree/$file" >"$work/modules/$plain" ;;
      *.gz) gzip -dc "$tree/$file" >"$work/modules/$plain" ;;
      *) cp "$tree/$file" "$work/modules/$plain" ;;
    esac
    echo "$plain" >>"$work/modules/order"
  done
done

rm -rf "$out/modules"
mv "$work/modules" "$out/modules"
install -m 0644 "$vmlinuz" "$out/vmlinuz"
echo "$release" >"$out/kernel.version"
say "$release with $(wc -l <"$out/modules/order") modules is in $out"
