#!/usr/bin/env bash
# Runs podman where a systemd container can run. On an ordinary modern Linux this is `exec podman "$@"`.
#
# Two kinds of machine need help (nested virtual machines, CI runners):
#  - /sys/fs/cgroup is not a plain cgroup2 mount: podman enters a mount namespace in which it is, held open by one
#    long-lived process. The machine's own mounts stay as they are.
#  - root lacks CAP_SYS_RESOURCE: limits cannot be raised above the present ones, so podman is told not to try.
set -euo pipefail

state=/run/platform-testhosts
# Debian's own: this script may be called podman itself.
podman=/usr/bin/podman

if [ "$(id -u)" -ne 0 ]; then
  exec sudo --preserve-env=CONTAINERS_CONF "$0" "$@"
fi
mkdir -p "$state"

has_sys_resource() {
  # CAP_SYS_RESOURCE is bit 24 (linux/capability.h).
  local effective
  effective=$(awk '/^CapEff:/ {print $2}' /proc/self/status)
  (((16#$effective >> 24) & 1))
}

if [ ! -d /run/systemd/system ]; then
  # Nobody runs the timers of health checks; `podman healthcheck run` asks once.
  export DISABLE_HC_SYSTEMD=true
fi

if ! has_sys_resource; then
  # Podman lowers its own process limit to pid_max first, so that is the most it can give.
  nproc=$(printf '%s\n' "$(ulimit -Hu)" "$(cat /proc/sys/kernel/pid_max)" | sort -n | head -1)
  # Written aside and moved, because several of these run side by side.
  configuration=$(mktemp "$state/containers.conf.XXXXXX")
  cat >"$configuration" <<CONF
[containers]
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=$nproc:$nproc"]
pids_limit = 0
[engine]
runtime = "runc"
[network]
network_backend = "netavark"
CONF
  if [ ! -d /run/systemd/system ]; then
    sed -i '/^runtime/a cgroup_manager = "cgroupfs"\nevents_logger = "file"' "$configuration"
  fi
  mv "$configuration" "$state/containers.conf"
  export CONTAINERS_CONF="$state/containers.conf"
fi

if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
  exec "$podman" "$@"
fi

holder_is_alive() {
  [ -s "$state/holder.pid" ] && grep -qs platform-testhosts "/proc/$(cat "$state/holder.pid")/cmdline"
}

(
  flock 9
  if ! holder_is_alive; then
    rm -f "$state/mounted"
    if ! pgrep -x conmon >/dev/null; then
      # Where /run outlives its processes (a restored machine) podman takes dead containers for running and fails at
      # their missing namespaces. Without its runtime state it looks anew, as after a boot.
      rm -rf /run/libpod /run/containers/storage /run/netns/netns-* /dev/shm/libpod_lock
    fi
    # shellcheck disable=SC2016  # the inner shell expands it
    # The holder's argument list carries the name by which holder_is_alive knows it.
    setsid unshare --mount --propagation private bash -c \
      'mount -t cgroup2 cgroup2 /sys/fs/cgroup && touch "$1" && exec -a platform-testhosts sleep infinity' \
      holder "$state/mounted" </dev/null >/dev/null 2>&1 9>&- &
    echo $! >"$state/holder.pid"
    for _ in $(seq 100); do
      [ -e "$state/mounted" ] && break
      sleep 0.05
    done
  fi
) 9>"$state/lock"
exec nsenter --target "$(cat "$state/holder.pid")" --mount "$podman" "$@"
