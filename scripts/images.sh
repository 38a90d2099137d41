#!/usr/bin/env bash
# Images that containers are built from, made here where no registry can be reached.
#
#   images.sh base debian12|debian13    what the registries call debian:12-slim and debian:13-slim
#   images.sh redis debian12|debian13   Debian's Redis, laid out like the registries' redis:7 and redis:8
#
# Prints the image's name. It is made when it is missing or what it is made of changed.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

podman="$root/scripts/podman.sh"
make_base() {
  debian "$@"
}

make_redis() {
  # User, group and data directory have the registries' names and numbers.
  # shellcheck disable=SC2016  # "$1" is for the shell that mmdebstrap starts
  debian "$@" --include=redis-server \
    --customize-hook='chroot "$1" groupmod --gid 999 redis && chroot "$1" usermod --uid 999 --home /data redis' \
    --customize-hook='install -d -o 999 -g 999 -m 0755 "$1/data"'
}

# As the registries' slim images: no manuals, no translations.
debian() {
  local suite=$1 archive=$2
  shift 2
  mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' "$@" "$suite" "$archive"
}

# Makes the image NAME from a file system that "make_KIND SUITE ARCHIVE" packs, unless it exists.
import_image() {
  local kind=$1 suite=$2 image=$3 directory
  "$podman" image exists "$image" && return
  directory=$(mktemp -d)
  # shellcheck disable=SC2064  # the directory is known now
  trap "as_root rm -rf '$directory'" EXIT
  as_root bash -c "set -euo pipefail; $(declare -f debian "make_$kind"); make_$kind $suite '$directory/root.tar'"
  # As the registries' images say it; `podman kube play` has no default.
  "$podman" import --quiet --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    "$directory/root.tar" "$image" >/dev/null
}

kind=${1:-} system=${2:-} suite=''
case "$system" in
debian12) suite=bookworm ;;
debian13) suite=trixie ;;
esac
case "$kind:$suite" in
base:?* | redis:?*) ;;
*)
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac

exec 9>"$root/.cache/images.lock"
flock 9
image="localhost/$kind:$system-$(declare -f debian "make_$kind" import_image | sha256sum | cut -c1-12)"
import_image "$kind" "$suite" "$image"
echo "$image"
