#!/usr/bin/env bash
# Prints the password that protects this checkout's vault files; ansible.cfg names this script.
# The first use makes it. Keep a copy of .secrets/vault-password in your team's password manager.
set -euo pipefail

file=$(cd "$(dirname "$0")/.." && pwd)/.secrets/vault-password
if [ ! -s "$file" ]; then
  umask 077
  mkdir -p "$(dirname "$file")"
  head -c 32 /dev/urandom | base64 >"$file"
fi
cat "$file"
