#!/usr/bin/env bash
# Fetches the guest kernel: Debian's cloud kernel, unpacked and never installed on this machine.
#
#   guest-kernel.sh OUTDIR
#
# OUTDIR/vmlinuz         the kernel
# OUTDIR/vmlinux         the same, uncompressed, as Firecracker boots it
# OUTDIR/modules/        the modules a microVM needs, uncompressed, and `order`: their names in loading order
# OUTDIR/kernel.version  its release, such as 6.1.0-56-cloud-amd64; written last, so it says that the rest is whole
#
# Nothing is done when OUTDIR already holds a kernel with these modules; remove OUTDIR to fetch a newer one.
set -euo pipefail

# ext4 and the crc32c algorithm are built into the kernel. virtio_mmio is Firecracker's bus, virtio_pci QEMU's; tcp_diag
# is what ends TCP connections at a restore.
readonly modules=(virtio_mmio virtio_pci virtio_blk virtio_net virtio_rng overlay erofs tcp_diag)
readonly suite=bookworm

fail() { echo "guest-kernel: $*" >&2; exit 1; }
say() { echo "guest-kernel: $*"; }

[[ $# -eq 1 ]] || fail "usage: guest-kernel.sh OUTDIR"
out=$1

# uncompress VMLINUZ VMLINUX: by the header of Linux's x86 boot protocol, which says where the payload is; its last four
# bytes are the size of what it unpacks to.
uncompress() {
  local setup offset length
  setup=$(od -An -tu1 -j497 -N1 "$1")
  offset=$(od -An -tu4 -j584 -N4 "$1")
  length=$(od -An -tu4 -j588 -N4 "$1")
  local end=$(((setup + 1) * 512 + offset + length - 4))
  # In this order neither closes a pipe that is still written to.
  payload() { head -c "$end" "$1" | tail -c "$((length - 4))"; }
  case $(payload "$1" | od -An -tx1 -N4 | tr -d ' ') in
    fd377a58) payload "$1" | xz -dc ;;
    28b52ffd) payload "$1" | zstd -qdc ;;
    02214c18) payload "$1" | lz4 -dc ;;
    1f8b*) payload "$1" | gzip -dc ;;
    *) fail "$1 is compressed in a way this script does not know" ;;
  esac >"$2.new"
  [[ $(od -An -c -N4 "$2.new" | tr -d ' ') == 177ELF ]] || fail "what is in $1 is no ELF kernel"
  chmod 0644 "$2.new"
  mv "$2.new" "$2"
}

# One that was fetched before there was a use for it.
if [[ -s $out/kernel.version && -s $out/vmlinuz && ! -s $out/vmlinux && $(uname -m) == x86_64 ]]; then
  uncompress "$out/vmlinuz" "$out/vmlinux"
fi
# `wanted` is what was asked for when the modules were ordered: a kernel that is there may lack one that is new here.
if [[ -s $out/kernel.version && -s $out/vmlinuz && -s $out/modules/order && -s $out/modules/wanted &&
  $(<"$out/modules/wanted") == "${modules[*]}" ]]; then
  say "$(<"$out/kernel.version") is already in $out"
  exit 0
fi

case $(uname -m) in
  x86_64) package=linux-image-cloud-amd64 ;;
  aarch64) package=linux-image-cloud-arm64 ;;
  *) fail "no cloud kernel is known for $(uname -m)" ;;
esac

for tool in mmdebstrap depmod xz zstd lz4; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
    fail "$tool is missing; install it with: apt-get install mmdebstrap kmod xz-utils zstd lz4"
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

echo "${modules[*]}" >"$work/modules/wanted"

rm -rf "$out/modules"
mv "$work/modules" "$out/modules"
install -m 0644 "$vmlinuz" "$out/vmlinuz"
# Arm's kernels are not compressed in this way.
[[ $(uname -m) != x86_64 ]] || uncompress "$out/vmlinuz" "$out/vmlinux"
echo "$release" >"$out/kernel.version"
say "$release with $(wc -l <"$out/modules/order") modules is in $out"
