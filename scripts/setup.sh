#!/usr/bin/env bash
# Prepares this machine as the controller: system packages, and the virtual environment .venv from hashed requirements.
#
#   setup.sh controller   what ansible-playbook and the test hosts need
#   setup.sh dev          that, and what the linters and tests need
#   setup.sh bench        what make bench needs on top of dev: a load generator, and the libraries that we are compared with
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

kind=${1:-controller}
# containers: podman with its network, DNS and runtime; images: mmdebstrap
packages="age ca-certificates curl iproute2 openssh-client python3-venv podman netavark aardvark-dns uidmap iptables nftables runc catatonit mmdebstrap"
requirements=controller
# Environments of their own in .cache, for what wants other versions than .venv has.
apart=""
if [ "$kind" != controller ]; then
  packages="$packages redis-server chromium"
  requirements=dev
  apart="checkov"
fi
if [ "$kind" = bench ]; then
  packages="$packages wrk"
  apart="$apart bench bench-arq"
fi

check_system() {
  # shellcheck source=/dev/null
  . /etc/os-release
  case "${ID:-}-${VERSION_ID:-}" in
  debian-12 | debian-13) ;;
  *) die "this machine runs ${PRETTY_NAME:-an unknown system}, but the controller is tested on Debian 12 and 13: use one of these." ;;
  esac
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "you are not root and sudo is not installed: run this as root, or install sudo."
    sudo --non-interactive true 2>/dev/null || sudo true ||
      die "you are not root and sudo refuses you: run this as root, or as a user with sudo."
  fi
  local free
  free=$(df --output=avail -k "$root" | tail -1)
  [ "$free" -ge 4000000 ] ||
    die "only $((free / 1024)) MiB are free where this repository lies, but 4 GiB are needed: make room and run this again."
}

install_packages() {
  as_root apt-get update --quiet=2
  # shellcheck disable=SC2086  # a list of words
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends $packages
}

packages_are_installed() {
  # shellcheck disable=SC2086  # a list of words
  [ "$(dpkg-query --show --showformat '${db:Status-Status}\n' $packages 2>/dev/null | grep -c '^installed$')" -eq "$(wc -w <<<"$packages")" ]
}

# Wheels alone: what is built from source runs code of its author's while it is installed.
install_locked() {
  "$1/bin/pip" install --quiet --disable-pip-version-check --no-compile --require-hashes --only-binary=:all: \
    --requirement "$root/requirements/$2.txt"
}

make_apart() {
  local name
  for name in $apart; do
    is_installed "$root/.cache/$name/installed" && continue
    [ -x "$root/.cache/$name/bin/python" ] || /usr/bin/python3 -m venv "$root/.cache/$name"
    install_locked "$root/.cache/$name" "$name"
    sha256sum "$root/requirements/$name.txt" >"$root/.cache/$name/installed"
  done
}

make_environment() {
  # Debian's own Python, so that the environment does not depend on what else is first in PATH.
  [ -x "$root/.venv/bin/python" ] || /usr/bin/python3 -m venv "$root/.venv"
  install_locked "$root/.venv" "$requirements"
  # Our own packages, as links to their sources: the locked flit_core alone runs for it.
  if [ "$requirements" = dev ]; then
    "$root/.venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
      --editable "$root/packages/celery-durable" --editable "$root/packages/durable-console" \
      --editable "$root/packages/hosttools"
  fi
  sha256sum "$root/requirements/$requirements.txt" >"$root/.venv/$requirements.installed"
}

is_installed() {
  sha256sum --check --status "$1" 2>/dev/null
}

all_are_installed() {
  local name
  for name in $apart; do
    is_installed "$root/.cache/$name/installed" || return
  done
  is_installed "$root/.venv/$requirements.installed"
}

# Both at once: each keeps one processor busy.
install_python() {
  trap wait EXIT
  make_apart &
  local others=$!
  is_installed "$root/.venv/$requirements.installed" || make_environment
  wait "$others"
}

check_system
if ! packages_are_installed; then
  step "Install system packages" "check the network and that no other apt runs." install_packages
fi
all_are_installed || step "Install Python packages ($kind)" "check the network." install_python
