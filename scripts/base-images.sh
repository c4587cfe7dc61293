#!/usr/bin/env bash
# Makes the container base images that Dockerfiles can start from without a registry:
#
#   pilotlight/debian:12   a small Debian 12
#   pilotlight/python:3    with python3, pip, venv and Flask
#   pilotlight/node:18     with Node.js
#
#   base-images.sh STORAGE
#
# STORAGE/root is a containers/storage store that builds read and never write, STORAGE/driver names its driver,
# STORAGE/recipe the recipes its images were made from: with the same recipes nothing is done.
set -euo pipefail

readonly suite=bookworm
readonly path_in_images=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Documentation and translations are never unpacked, in these images or by a Dockerfile's apt-get: every microVM's
# root disk would carry them. Copyright files stay, because licences ask for it.
readonly dpkg_options=(
  --dpkgopt='path-exclude=/usr/share/doc/*'
  --dpkgopt='path-include=/usr/share/doc/*/copyright'
  --dpkgopt='path-exclude=/usr/share/man/*'
  --dpkgopt='path-exclude=/usr/share/info/*'
  --dpkgopt='path-exclude=/usr/share/locale/*'
  --dpkgopt='path-exclude=/usr/share/lintian/*'
  --dpkgopt=force-unsafe-io
)

fail() { echo "base-images: $*" >&2; exit 1; }
say() { echo "base-images: $*"; }

[[ $# -eq 1 ]] || fail "usage: base-images.sh STORAGE"
mkdir -p "$1"
storage=$(realpath "$1")
recipe=$(sha256sum <"${BASH_SOURCE[0]}" | cut -d' ' -f1)

if [[ -s $storage/recipe && $(<"$storage/recipe") == "$recipe" && -s $storage/driver ]]; then
  say "the images in $storage are up to date"
  exit 0
fi
[[ $EUID -eq 0 ]] || fail "run it as root"
for tool in mmdebstrap buildah unshare; do
  command -v "$tool" >/dev/null || fail "$tool is missing; run: make setup"
done

# Mounts live in a mount namespace of their own, so that none is left behind however this script ends.
if [[ ${PILOTLIGHT_IN_NAMESPACE:-} != yes ]]; then
  PILOTLIGHT_IN_NAMESPACE=yes exec unshare --mount --propagation private -- "${BASH_SOURCE[0]}" "$storage"
fi

work=$(mktemp -d "$storage/.new-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/tmp"
export TMPDIR=$work/tmp

say "Debian $suite, a minute or so"
mmdebstrap --variant=minbase --include=ca-certificates "${dpkg_options[@]}" \
  --customize-hook='rm -rf "$1"/var/log/* "$1"/var/cache/debconf/*-old "$1"/etc/hostname "$1"/etc/resolv.conf' \
  "$suite" "$work/debian.tar" >"$work/debian.log" 2>&1 || {
  tail -n 20 "$work/debian.log" >&2
  fail "could not fetch Debian $suite; check the network, and on Ubuntu that debian-archive-keyring is installed"
}

# The kernel's overlay where it can be mounted on this file system, plain copies of directories elsewhere.
mkdir "$work"/{lower,upper,work,merged}
driver=vfs
if mount -t overlay overlay -o "lowerdir=$work/lower,upperdir=$work/upper,workdir=$work/work" "$work/merged" 2>/dev/null
then
  driver=overlay
  umount "$work/merged"
fi
buildah() { command buildah --root "$work/root" --runroot "$work/run" --storage-driver "$driver" "$@"; }

# image NAME CONTAINER: commits a working container under its name.
image() {
  buildah config --env "PATH=$path_in_images" --cmd bash --label "pilotlight.recipe=$recipe" "$2"
  buildah commit --quiet --rm "$2" "localhost/pilotlight/$1" >/dev/null
  say "pilotlight/$1 is made"
}

container=$(buildah from scratch)
buildah add --quiet "$container" "$work/debian.tar" / >/dev/null
image debian:12 "$container"

# with NAME INSTALL...: an image that adds packages to Debian.
with() {
  local name=$1 log=$work/${1%:*}.log container
  shift
  container=$(buildah from --pull=never localhost/pilotlight/debian:12)
  buildah run --isolation chroot "$container" -- sh -ec '
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update
    apt-get -q install -y --no-install-recommends "$@"
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/debconf/*-old
    # In a container the whole system is the application'"'"'s: pip may install into it.
    rm -f /usr/lib/python3*/EXTERNALLY-MANAGED' sh "$@" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    return 1
  }
  image "$name" "$container"
}

say "Python and Node.js, another minute"
with python:3 python3 python3-flask python3-pip python3-venv & python=$!
with node:18 nodejs & node=$!
wait "$python" || fail "could not make pilotlight/python:3; see above"
wait "$node" || fail "could not make pilotlight/node:18; see above"

# Builds that run now keep the files they have open; the next ones see the new store.
rm -rf "$storage/root.old" "$storage/recipe"
[[ ! -e $storage/root ]] || mv "$storage/root" "$storage/root.old"
mv "$work/root" "$storage/root"
rm -rf "$storage/root.old"
echo "$driver" >"$storage/driver"
echo "$recipe" >"$storage/recipe"
say "the images are in $storage ($driver, $(du -sh "$storage/root" | cut -f1))"
