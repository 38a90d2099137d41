# Sourced by the scripts beside it: named steps with times, and errors of one sentence.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
log_directory="$root/.cache/logs"
mkdir -p "$log_directory"

die() {
  printf '\nerror: %s\n' "$*" >&2
  exit 1
}

# Ansible ends at a locale that this machine has not; every Debian has this one.
export LC_ALL=C.UTF-8
[ -z "$(find "$root" -maxdepth 0 -perm -0002)" ] ||
  die "everybody may write into $root, where Ansible therefore ignores ansible.cfg: run chmod o-w $root."

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo --non-interactive "$@"; fi
}

# step NAME HINT COMMAND...: runs the command with its output in a log file; HINT ends the error when it fails.
step() {
  local name=$1 hint=$2 log started status
  shift 2
  log="$log_directory/${name//[^A-Za-z0-9]/-}.log"
  started=$SECONDS
  printf '  %-58s' "$name"
  # Not as the condition of an if: there, bash would ignore that a command in the middle of a function fails.
  set +e
  (
    set -e
    "$@"
  ) >"$log" 2>&1
  status=$?
  set -e
  if [ "$status" -eq 0 ]; then
    printf '%4d s\n' $((SECONDS - started))
  else
    printf 'failed\n\n' >&2
    tail -n 15 "$log" >&2
    die "\"$name\" failed: $hint The whole output is in ${log#"$root"/}."
  fi
}
