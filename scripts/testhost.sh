#!/usr/bin/env bash
# Test hosts: systemd containers that Ansible reaches over SSH like any other Debian host.
#
#   testhost.sh image  debian12|debian13             build the image when it is missing or its definition changed
#   testhost.sh start  NAME debian12|debian13 [ARGS] start a bare host (ARGS go to podman run); prints its SSH port
#   testhost.sh keep   NAME debian12|debian13        shut the host down in order, keep its state as an image, start it again
#   testhost.sh resume NAME debian12|debian13 [ARGS] start a host from the state that was kept; prints its SSH port
#   testhost.sh reboot NAME                          shut the host down in order and start it again
#   testhost.sh stop   NAME...                       remove hosts; no error when there is none
#
# A host is reached as ops@127.0.0.1 with the key .secrets/testhost/id_ed25519; ops has sudo without a password.
# Hosts find one another by name on the Podman network "platform-testhosts".
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
podman="$root/scripts/podman.sh"
key_directory="$root/.secrets/testhost"
# A scenario may give its hosts addresses of their own from 10.213.1.0 on; the others get them from below.
network=platform-testhosts
subnet=10.213.0.0/16

# What a plain Debian server has, as far as the roles count on it.
base_packages=systemd,systemd-sysv,dbus,openssh-server,python3,python3-apt,sudo,iproute2,procps,ca-certificates,curl
# Packages that the roles install: downloaded once here, so that no test host has to fetch them again.
cached_packages="redis-server redis-sentinel supervisor logrotate python3-venv nftables unattended-upgrades lynis"
cached_packages+=" prometheus prometheus-alertmanager prometheus-node-exporter prometheus-redis-exporter"
cached_packages+=" haproxy keepalived"

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

suite_of() {
  case "$1" in
  debian12) echo bookworm ;;
  debian13) echo trixie ;;
  *)
    echo "testhost.sh: unknown system '$1': use debian12 or debian13" >&2
    exit 2
    ;;
  esac
}

image_of() {
  # The tag carries a digest of the definition, so that a change of it builds a new image.
  local definition
  definition=$(declare -f build_image)$base_packages$cached_packages$(<"$root/scripts/zipimport_cache.py")
  echo "localhost/testhost:$1-$(sha256sum <<<"$definition" | cut -c1-12)"
}

installed_image_of() {
  # The tag carries a digest of what molecule/default makes the state from: another state is never taken for this one.
  local sources
  sources=$(cd "$root" && find app playbooks plugins packages requirements/app.txt requirements/platform.txt roles site.yml .config/molecule/config.yml \
    molecule/default/{converge,molecule}.yml -type f -not -name '*.pyc' -exec sha256sum {} + 2>/dev/null | sort)
  echo "localhost/testhost-installed:$1-$(sha256sum <<<"$(image_of "$1") $sources" | cut -c1-12)"
}

build_image() {
  local system=$1 suite image directory
  suite=$(suite_of "$system")
  image=$(image_of "$system")
  if "$podman" image exists "$image"; then return; fi
  directory=$(mktemp -d)
  # shellcheck disable=SC2064  # the directory is known now
  trap "as_root rm -rf '$directory'" EXIT
  # Mounts are shared, as systemd makes them on a real host: without that LoadCredential= gives units of systemd 257 an
  # empty directory.
  # shellcheck disable=SC2016  # "$1" is for the shell that mmdebstrap starts
  as_root mmdebstrap --quiet --variant=minbase --include="$base_packages" \
    --skip=cleanup/apt/lists,cleanup/apt/cache \
    --customize-hook="chroot \"\$1\" apt-get install --quiet=2 --yes --download-only $cached_packages" \
    --customize-hook='chroot "$1" useradd --create-home --shell /bin/bash ops' \
    --customize-hook='echo "ops ALL=(ALL) NOPASSWD: ALL" >"$1/etc/sudoers.d/ops"' \
    --customize-hook="copy-in '$root/scripts/zipimport_cache.py' /usr/lib/python3/dist-packages" \
    --customize-hook='echo "import zipimport_cache" >"$1/usr/lib/python3/dist-packages/zipimport_cache.pth"' \
    --customize-hook='install -d -m 700 "$1/var/cache/zipimport"' \
    --customize-hook='printf "%s\n" "#!/bin/sh" "mount --make-rshared /" "exec /sbin/init" >"$1/sbin/testhost-init"' \
    --customize-hook='chmod 755 "$1/sbin/testhost-init"' \
    "$suite" "$directory/root.tar"
  "$podman" import --quiet --change 'CMD ["/sbin/testhost-init"]' "$directory/root.tar" "$image" >/dev/null
}

wait_until_running() {
  # "degraded" is a booted system too: one unit of the base system failed, which tests will tell if it matters.
  local answer
  for _ in $(seq 240); do
    answer=$("$podman" exec "$1" systemctl is-system-running 2>/dev/null || true)
    case "$answer" in running | degraded) return ;; esac
    sleep 0.25
  done
  echo "testhost.sh: $1 did not finish booting within 60 s; see: scripts/podman.sh exec $1 systemctl --failed" >&2
  exit 1
}

# Several scenarios run side by side: one of them prepares what all of them share.
prepare() (
  flock 9
  build_image "$1"
  "$podman" network exists "$network" || "$podman" network create --subnet "$subnet" "$network" >/dev/null
  if [ ! -f "$key_directory/id_ed25519" ]; then
    mkdir -p "$key_directory"
    ssh-keygen -q -t ed25519 -N '' -C testhost -f "$key_directory/id_ed25519"
  fi
) 9>"$root/.cache/testhost.lock"

start_host() {
  start_from "$(image_of "$2")" "$@"
}

resume_host() {
  local image
  image=$(installed_image_of "$2")
  "$podman" image exists "$image" || {
    echo "testhost.sh: no installed $2 of the present sources was kept: run 'make installed'" >&2
    exit 1
  }
  start_from "$image" "$@"
}

start_from() {
  local image=$1 name=$2 system=$3
  shift 3
  mkdir -p "$root/.cache"
  prepare "$system"
  if [ "$("$podman" container inspect --format '{{.State.Running}}' "$name" 2>/dev/null)" != true ]; then
    stop_host "$name"
    # SYS_ADMIN and SYS_PTRACE let systemd set up its sandboxes, which the tests look at; nothing more is given.
    "$podman" run --detach --name "$name" --hostname "$name" --systemd=always --network "$network" \
      --cap-add SYS_ADMIN,SYS_PTRACE --publish 127.0.0.1::22 "$@" "$image" >/dev/null
  fi
  wait_until_running "$name"
  "$podman" exec --interactive "$name" \
    sh -c 'install -d -o ops -m 700 ~ops/.ssh && install -o ops -m 600 /dev/stdin ~ops/.ssh/authorized_keys' \
    <"$key_directory/id_ed25519.pub"
  # To its end: a reader that stops at the first line may kill podman, which is a failure here.
  "$podman" port "$name" 22/tcp | awk -F: 'NR == 1 { print $2 }'
}

stop_host() {
  "$podman" rm --force --ignore --time 0 "$@" >/dev/null
}

reboot_host() {
  # The longest ordered stop is a worker that finishes a task: hard limit, both stop phases, margin.
  "$podman" restart --time 150 "$1" >/dev/null
  wait_until_running "$1"
}

keep_host() {
  local name=$1 system=$2 image old
  image=$(installed_image_of "$system")
  old=$("$podman" image ls --quiet --filter "reference=localhost/testhost-installed:$system-*")
  # As long as for a reboot. A host that runs has files that are half written.
  "$podman" stop --time 150 "$name" >/dev/null
  "$podman" commit --quiet "$name" "$image" >/dev/null
  "$podman" start "$name" >/dev/null
  wait_until_running "$name"
  for image in $old; do
    # One that a host still uses goes with the next call.
    "$podman" image rm "$image" >/dev/null 2>&1 || true
  done
}

command=${1:-}
shift || true
case "$command" in
image) build_image "$@" ;;
start) start_host "$@" ;;
keep) keep_host "$@" ;;
resume) resume_host "$@" ;;
reboot) reboot_host "$@" ;;
stop) stop_host "$@" ;;
*)
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
