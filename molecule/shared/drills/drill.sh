# shellcheck shell=bash
# What the drills' commands may use: it is put before each of them. Secrets come from files, never as arguments.

# The administrator's client of the broker, and of the results' Redis.
redis() {
  REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis-broker.conf) redis-cli -e -p "${port:-6380}" "$@"
}

results() {
  port=6379 redis "$@"
}

# Has a user with all rights, whom the platform does not know, run a script; returns when Redis answers BUSY.
drill_script() {
  local user=drill password
  password=$(head -c 30 /dev/urandom | base64 -w0)
  redis ACL SETUSER "$user" on "#$(printf %s "$password" | sha256sum | cut -d' ' -f1)" '~*' +@all
  REDISCLI_AUTH=$password setsid redis-cli --user "$user" -p 6380 EVAL "$1" 0 >/dev/null 2>&1 </dev/null &
  until redis PING 2>&1 | grep -q BUSY; do sleep 1; done
}

used_memory() {
  redis INFO memory | sed -n 's/^used_memory:\([0-9]*\).*/\1/p'
}

# A client of the API; it sends the key that drill_key has kept.
drill_key() {
  grep -o '[^, ]*' /etc/typesafe/secrets/api/BACKEND_API_KEY | sed 's/^/X-API-Key: /;q' >/run/drill-key
}

# Hands in a task with this data and prints its id; nothing where the API refuses.
enqueue() {
  curl -s -H @/run/drill-key -H 'Content-Type: application/json' -d "{\"data\": $1}" \
    http://127.0.0.1:8000/tasks/enqueue | sed -n 's/.*"task_id": *"\([^"]*\).*/\1/p'
}

# Runs a program as the worker's user, with its secrets, in a unit of its own.
as_worker() {
  systemd-run --quiet --uid=typesafe --working-directory=/opt/typesafe/backend \
    --setenv=SECRETS_DIRECTORY=/etc/typesafe/secrets/worker "$@"
}

# Hands in so many tasks.
enqueue_many() {
  drill_key
  for _ in $(seq "$1"); do enqueue '{}' >/dev/null; done
}

# Hands in a task each second, until enqueue_no_more.
enqueue_steadily() {
  drill_key
  systemd-run --unit=drill-stream --quiet bash -c "$(declare -f enqueue); while sleep 1; do enqueue '{}'; done"
}

enqueue_no_more() {
  systemctl stop drill-stream 2>/dev/null || true
}

# Waits until a task has a status, for a minute.
until_task() {
  for _ in $(seq 120); do
    if curl -s -H @/run/drill-key "http://127.0.0.1:8000/tasks/status/$1" | grep -q "\"$2\""; then return; fi
    sleep 0.5
  done
  return 1
}

# The resident size of the application's largest process, in KiB.
largest_process() {
  ps -u typesafe -o rss= | sort -n | tail -1
}

# How many silences Alertmanager observes.
silences() {
  sed 's/^/user = admin:/' /etc/prometheus/secrets/password | curl -sS -K - http://127.0.0.1:9093/api/v2/silences |
    grep -o '"state":"active"' | wc -l
}

# Whether this host's workers run in debug mode.
in_debug_mode() {
  pgrep --full -- '--loglevel=debug' >/dev/null
}

# Waits until they do so no longer.
until_debug_mode_ends() {
  for _ in $(seq 150); do
    if ! in_debug_mode; then return; fi
    sleep 1
  done
  return 1
}

# Keeps a file as it is, to put it back later.
keep() {
  cp -a "$1" "/run/kept-${1//\//-}"
}

put_back() {
  cp -a --remove-destination "/run/kept-${1//\//-}" "$1"
}

# Another program that takes a port of this host.
intruder() {
  systemd-run --unit=intruder --quiet python3 -c \
    "import socket, time; server = socket.create_server(('127.0.0.1', $1)); time.sleep(900)"
  sleep 1
}

# What somebody tells this host's worker with celery control.
celery_control() {
  typesafe-admin control -d "default@$(hostname)" "$@"
}

restart_broker() {
  systemctl reset-failed redis-server@broker || true
  systemctl restart redis-server@broker
}

# What this host's sentinel answers.
sentinel() {
  REDISCLI_AUTH=$(sed -n 's/^sentinel sentinel-pass //p' /etc/redis/sentinel.conf) \
    redis-cli -s /run/sentinel/redis-sentinel.sock --raw sentinel "$@"
}

# Whether this host has the broker's primary, as the sentinels see it, or a replica that follows it.
is_primary() {
  [ -e /etc/redis/sentinel.conf ] && [ "$(sentinel get-master-addr-by-name broker | head -1)" = "$(own_address)" ]
}

is_replica() {
  [ -e /etc/redis/sentinel.conf ] && ! is_primary && redis INFO replication | grep -q 'master_link_status:up'
}

own_address() {
  sed -n 's/^replica-announce-ip //p' /etc/redis/redis-broker.conf
}

# Nothing from the other hosts of Redis comes in any more; who watches, comes.
cut_off() {
  nft 'table inet cut { chain input { type filter hook input priority -300; iifname != "lo" ip saddr 10.213.3.1-10.213.3.3 drop; }; }'
}

# Tells the sentinels of one that is no more.
introduce_a_dead_sentinel() {
  REDISCLI_AUTH=$(sed -n 's/^sentinel auth-pass broker //p' /etc/redis/sentinel.conf) redis-cli -p 6380 --user sentinel \
    PUBLISH __sentinel__:hello "10.213.3.99,26379,$(printf '%040d' 99),0,broker,$(own_address),6380,0"
}
