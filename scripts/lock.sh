#!/usr/bin/env bash
# Locks requirements with the hashes of their wheels: releases are installed from nothing else. For Python 3.11 (Debian 12) and later, or
# from the version in PYTHON on. A locked version stays, unless an OPTION is --upgrade or --upgrade-package=NAME.
#
#   lock.sh [OPTION]...            this repository's own, requirements/*.in
#   lock.sh FILE LOCK [OPTION]...  an application's: FILE is a requirements.txt, a requirements.in or a pyproject.toml
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

lock() {
  [ -f "$1" ] || die "$1 is no file: name the application's requirements.in or pyproject.toml."
  "$root/.venv/bin/uv" pip compile --project "$root" --quiet --universal --python-version "${PYTHON:-3.11}" --generate-hashes --only-binary :all: \
    --no-emit-index-url --no-annotate --no-header "$1" --output-file "$2" "${@:3}" >/dev/null
}

case ${1:--} in
-*)
  cd "$root/requirements"
  lock dev.in dev.txt "$@"
  # In one environment with what checks them, and so in the same versions.
  for name in app platform controller kubernetes; do
    lock "$name.in" "$name.txt" --constraints dev.txt
  done
  for name in checkov bench bench-arq; do
    lock "$name.in" "$name.txt" "$@"
  done
  ;;
*)
  [ $# -ge 2 ] || die "LOCK is missing: name the file to write, like $(dirname "$1")/requirements.lock."
  case $1 in
  *.txt | *.in) ;;
  *.toml) grep -qE '^dependencies *=' "$1" ;;
  *) false ;;
  esac || die "$1 has no list of requirements that can be locked: write a requirements.in, like 'poetry export --without-hashes' or 'uv export --no-hashes' does."
  overrides=$2.overrides
  pinned=$2.pinned
  trap 'rm -f "$overrides" "$pinned"' EXIT
  # An application may pin older ones, also of what Celery itself needs. The library works with these; its tests run with them.
  sed -nE 's/^((amqp|async-timeout|billiard|click(-[a-z]+)?|prompt-toolkit|python-dateutil|redis|vine)==\S+).*/\1/p; s/^(celery|kombu)(==\S+).*/\1[redis]\2/p' \
    "$root/requirements/app.txt" >"$overrides"
  # So is a uvicorn without --timeout-graceful-shutdown, which the API's unit uses. An override replaces the extras, too.
  if (lock "$1" "$pinned" "${@:3}" --overrides "$overrides" --no-strip-extras) 2>/dev/null; then
    sed -nE 's/^(uvicorn(\[[^]]+\])?)==0\.([0-9]|1[0-9]|2[01])\..*/\1>=0.22/p' "$pinned" >>"$overrides"
  fi
  lock "$@" --overrides "$overrides" ||
    die "$1 is not locked, for the reason above: name another version, or another package, in a file beside it (docs/start/your-app.md)."
  ;;
esac
