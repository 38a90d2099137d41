#!/usr/bin/env bash
# Prints the password that protects this checkout's vault files; ansible.cfg names this script.
# The first use makes it. Keep a copy of .secrets/vault-password in your team's password manager.
set -euo pipefail

file=$(cd "$(dirname "$0")/.." && pwd)/.secrets/vault-password
if [ ! -e "$file" ]; then
  umask 077
  mkdir -p "$(dirname "$file")"
  # Of several first uses at once (ansible-lint) one wins, and nobody reads a file that is half written.
  new=$(mktemp "$file.XXXXXX")
  head -c 32 /dev/urandom | base64 >"$new"
  ln "$new" "$file" 2>/dev/null || true
  rm "$new"
fi
cat "$file"
