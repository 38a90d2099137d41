#!/usr/bin/env bash
# The sandbox: one throw-away systemd host on this machine with the whole platform on it.
#
#   sandbox.sh up     make it, or bring it up to date; then send a task through it
#   sandbox.sh down   remove it; the generated secrets stay
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

name=sandbox
secrets="$root/.secrets/sandbox"
export PATH="$root/.venv/bin:$PATH"
export ANSIBLE_CONFIG="$root/ansible.cfg"
cd "$root"

host_is_running() {
  [ "$(scripts/podman.sh container inspect --format '{{.State.Running}}' "$name" 2>/dev/null)" = true ]
}

check_ports() {
  # The sandbox's own container holds them when it runs already.
  host_is_running && return
  local port owner
  for port in 2222 8000 5555; do
    owner=$(as_root ss --no-header --listening --tcp --numeric --processes "sport = :$port" | grep -oP 'users:\(\("\K[^"]+' | head -1 || true)
    [ -z "$owner" ] || die "port $port is taken by '$owner', but the sandbox needs it: stop that program and run make sandbox again."
  done
}

deploy() {
  ansible-playbook --inventory inventories/sandbox site.yml
}

check_image_space() {
  local free
  free=$(as_root df --output=avail -k /var/lib | tail -1)
  [ "$free" -ge 3000000 ] ||
    die "only $((free / 1024)) MiB are free in /var/lib, but the test host needs 3 GiB: make room and run make sandbox again."
}

up() {
  local started=$SECONDS
  printf 'Sandbox:\n'
  scripts/setup.sh controller
  check_ports
  check_image_space
  step "Build the host image (Debian 13)" "check the network and the free space." scripts/testhost.sh image debian13
  step "Start the host" "see scripts/podman.sh logs $name." scripts/testhost.sh start "$name" debian13 \
    --cap-add NET_ADMIN --publish 127.0.0.1:2222:22 --publish 127.0.0.1:8000:8000 --publish 127.0.0.1:5555:5555
  step "Install the platform (ansible-playbook site.yml)" "correct what the failed task names and run make sandbox again." deploy
  step "Send a task through the API and wait for SUCCESS" "see scripts/podman.sh exec $name journalctl -u typesafe-celery -u typesafe-api -n 50." \
    ansible-playbook --inventory inventories/sandbox playbooks/diagnose/smoke_test.yml
  local key="${secrets#"$root"/}/backend_api_key" task
  # The key goes through a pipe: arguments are for everybody to see.
  task=$(curl --noproxy '*' --silent --show-error --fail http://127.0.0.1:8000/tasks/enqueue \
    --header @<(printf 'X-API-Key: %s\n' "$(<"$key")") --header 'Content-Type: application/json' --data '{"data": {"key": "value"}}' | grep -oP '"task_id":"\K[^"]+') ||
    die "the API does not answer on 127.0.0.1:8000, although it does inside the host: see scripts/podman.sh port $name."
  cat <<TEXT

Ready after $((SECONDS - started)) s.

  API      http://127.0.0.1:8000        pages to try it: http://127.0.0.1:8000/docs, key in $key
  Flower   http://127.0.0.1:5555/flower user admin, password in ${secrets#"$root"/}/flower_password
  Secrets  ${secrets#"$root"/}/ (generated, never committed)

Try next:

  curl -X POST http://127.0.0.1:8000/tasks/enqueue -H "X-API-Key: \$(cat $key)" -H 'Content-Type: application/json' -d '{"data": {"key": "value"}}'
  curl http://127.0.0.1:8000/tasks/status/$task -H "X-API-Key: \$(cat $key)"
  scripts/burst.py 500                    # 500 runs of ten seconds, all at once
  curl http://127.0.0.1:8000/metrics/celery -H "X-API-Key: \$(cat $key)"
  curl http://127.0.0.1:8000/health/celery
  curl -u admin:\$(cat ${secrets#"$root"/}/flower_password) http://127.0.0.1:5555/flower/api/workers
  scripts/podman.sh exec sandbox journalctl -u typesafe-celery -n 20

Change a variable in inventories/sandbox and run make sandbox again; make sandbox-down removes it all.
TEXT
}

case "${1:-}" in
up) up ;;
down)
  step "Remove the sandbox" "see the output." scripts/testhost.sh stop "$name"
  ;;
*)
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
