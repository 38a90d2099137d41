"""The fire drills: each brings a fault, waits for its alerts, and repairs it as the alerts' pages say."""

from __future__ import annotations

from dataclasses import dataclass

MAIN, WORKER = "monitoring-main", "monitoring-worker"

# Begin a command: the administrator's redis-cli, and a client of the API; their secrets come from files.
REDIS = (
    "export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis-broker.conf);"
    'redis() { redis-cli -e --no-auth-warning -p 6380 "$@" >/dev/null; };'
    "used_memory() { redis-cli -p 6380 INFO memory | sed -n 's/^used_memory:\\([0-9]*\\).*/\\1/p'; };"
)
API = (
    "grep -o '[^, ]*' /etc/typesafe/secrets/api/BACKEND_API_KEY | sed 's/^/X-API-Key: /;q' >/run/drill-key;"
    "enqueue() { curl -s -o /dev/null -H @/run/drill-key -H 'Content-Type: application/json'"
    ' http://127.0.0.1:8000/tasks/enqueue -d "{\\"data\\": $1}"; };'
)
# A kind of task that no worker of the scenario serves, handed in again and again.
FLOOD = """
import itertools, time
from app.agents.worker import celery_app
for number in itertools.count():
    celery_app.send_task("app.agents.tasks.reports.report", queue="reports")
    time.sleep(0 if number < 120 else 1)
"""
# Spoils the beginning of a command near the end: what comes after it cannot be read.
BREAK_AOF = """
from pathlib import Path
file = max(Path("/var/lib/redis/broker/appendonlydir").glob("*.incr.aof"))
data = bytearray(file.read_bytes())
data[data.rindex(b"\\r\\n*", 0, len(data) - 200) + 2] = ord("X")
file.write_bytes(data)
"""


@dataclass(frozen=True)
class Drill:
    """One row of docs/drills.md. Commands are bash, as root."""

    fault: str
    alerts: tuple[str, ...]  # none: a procedure that no alert asks for
    inject: str
    runbook: str  # below playbooks/
    variables: str = ""  # that the person gives it
    on: tuple[str, ...] = (MAIN,)  # where the commands run
    outside: str = ""  # what others mend meanwhile: a provider, a network
    well: str = "true"  # commands that succeed when the fault is gone, beside what the runbook itself verifies
    clean: str = "true"  # what the drill itself has left
    slow: bool = False  # its alerts take minutes: begun before the others, met after them
    looks: bool = True  # whether the runbook has a first look that changes nothing


DRILLS = (
    Drill(
        "A kind of task floods a queue that no worker serves",
        ("QueueTooOld", "BacklogGrowing"),
        # It goes on when others stop the broker.
        "systemd-run --quiet --unit=drill-flood --property=Restart=always --property=RestartSec=1"
        " --property=StartLimitIntervalSec=0 --uid=typesafe"
        " --working-directory=/opt/typesafe/backend --setenv=SECRETS_DIRECTORY=/etc/typesafe/secrets/worker"
        f" /opt/typesafe/backend/venv/bin/python -c '{FLOOD}'",
        "runbooks/queue_backlog.yml",
        "verb=drop task=app.agents.tasks.reports.report",
        outside="systemctl stop drill-flood",
        clean="systemctl stop drill-flood 2>/dev/null || true",
        slow=True,
    ),
    Drill(
        "A provider answers with errors",
        ("TasksFail", "TasksRetry"),
        "touch /var/lib/drill/fail; [ ! -e /etc/typesafe/secrets/api ] || { "
        f"{API} for i in $(seq 40); do enqueue '{{\"simulate_failure\": true}}'; sleep 1; done; }}",
        "smoke.yml",
        on=(WORKER, MAIN),
        outside="rm -f /var/lib/drill/fail",
        clean="rm -f /var/lib/drill/fail",
        slow=True,
        looks=False,
    ),
    Drill(
        "A file system is full",
        ("DiskFilling",),
        "mount -t tmpfs -o size=64m drill /var/cache/apt/archives;"
        "head -c 60M /dev/zero >/var/cache/apt/archives/old_1.0_all.deb",
        "runbooks/disk_full.yml",
        clean="umount /var/cache/apt/archives 2>/dev/null || true",
        slow=True,
    ),
    Drill(
        "An exporter is stopped",
        ("TargetDown",),
        "systemctl stop prometheus-node-exporter",
        "monitoring.yml",
        on=(WORKER,),
        slow=True,
        looks=False,
    ),
    # Before others restart workers, too.
    Drill(
        "A task kills its worker, again and again",
        ("WorkerRestartLoop",),
        "touch /var/lib/drill/kill; [ ! -e /etc/typesafe/secrets/api ] || { "
        f"rm /var/lib/drill/kill; {API} for i in $(seq 12); do enqueue '{{}}'; done; }}",
        # By now ten workers have died with it, and it is a dead letter.
        "dead_letters.yml",
        "verb=drop letters=all",
        looks=False,
        on=(WORKER, MAIN),
        outside="rm -f /var/lib/drill/kill",
        clean="rm -f /var/lib/drill/kill",
    ),
    Drill(
        "The workers of one host are stopped",
        ("WorkersMissing",),
        "systemctl stop typesafe-celery",
        "runbooks/no_workers.yml",
        on=(WORKER,),
    ),
    Drill(
        "All workers are stopped",
        ("NoWorkers",),
        "systemctl stop typesafe-celery",
        "runbooks/no_workers.yml",
        on=(MAIN, WORKER),
    ),
    Drill(
        "A message that is no task",
        ("DeadLetters",),
        f"{REDIS} redis LPUSH celery poison",
        "dead_letters.yml",
        "verb=drop letters=all",
        looks=False,
    ),
    Drill(
        "A provider never answers, and the worker's threads know no limit",
        ("TaskStuck",),
        "echo 100000 >/var/lib/drill/slow; [ ! -e /etc/typesafe/secrets/api ] || { "
        f"rm /var/lib/drill/slow; {API} for i in $(seq 12); do enqueue '{{}}'; done; }}",
        "runbooks/stuck_task.yml",
        on=(WORKER, MAIN),
        outside="rm -f /var/lib/drill/slow",
        clean="rm -f /var/lib/drill/slow",
    ),
    Drill(
        "A provider has become slow",
        ("TasksTimeOut",),
        "echo 7 >/var/lib/drill/slow; [ ! -e /etc/typesafe/secrets/api ] || { "
        f"{API} for i in $(seq 16); do enqueue '{{}}'; done; }}",
        "runbooks/tasks_time_out.yml",
        "task_soft_time_limit=60 task_time_limit=80",
        on=(WORKER, MAIN),
        clean="rm -f /var/lib/drill/slow",
    ),
    Drill(
        "Somebody has edited the settings, and the worker does not start",
        ("UnitRestartLoop",),
        "sed -i 's/^TASK_SOFT_TIME_LIMIT=.*/TASK_SOFT_TIME_LIMIT=9999/' /etc/typesafe/backend.env;"
        "systemctl restart --no-block typesafe-celery",
        "runbooks/worker_crashes.yml",
    ),
    Drill(
        "The broker is stopped",
        ("RedisDown",),
        "systemctl stop redis-server@broker",
        "runbooks/redis_connection.yml",
    ),
    Drill(
        "Redis does not know the API's password any more",
        ("BrokerUnreachable", "ApiErrors"),
        f"{REDIS} redis ACL SETUSER api resetpass '>somebody-has-changed-it'; redis CLIENT KILL USER api;"
        f"{API} for i in $(seq 60); do enqueue '{{}}'; sleep 0.5; done",
        "runbooks/redis_connection.yml",
    ),
    Drill(
        "Redis may not write into its directory any more",
        ("RedisCannotSave",),
        f"{REDIS} chown root: /var/lib/redis/broker/appendonlydir; redis BGREWRITEAOF || true",
        "runbooks/aof_broken.yml",
    ),
    Drill(
        "The broker's append-only file is broken in its middle",
        ("RedisDown",),
        f"systemctl stop redis-server@broker; python3 -c '{BREAK_AOF}'; systemctl start --no-block redis-server@broker",
        "runbooks/aof_broken.yml",
    ),
    Drill(
        "The broker's memory runs out",
        ("RedisMemoryHigh",),
        f"{REDIS} used=$(used_memory);redis CONFIG SET maxmemory $((used * 100 / 74))",
        "runbooks/redis_memory.yml",
        "maxmemory=256mb",
    ),
    Drill(
        "Somebody has told the broker to evict",
        ("BrokerEvicts",),
        # The oldest keys go first, and those are the drill's own: workers touch theirs every second.
        f"{REDIS} for i in $(seq 200); do redis SET drill:$i $(head -c 7500 /dev/zero | tr '\\0' x); done; sleep 3;"
        "used=$(used_memory);"
        "redis CONFIG SET maxmemory-policy allkeys-lru; redis CONFIG SET maxmemory $((used - 500000))",
        "runbooks/redis_memory.yml",
        "maxmemory=256mb",
        clean=f"{REDIS} for i in $(seq 200); do redis DEL drill:$i; done",
    ),
    Drill(
        "The live release is gone",
        ("ApiDown",),
        "ln -sfn /opt/typesafe/releases/none /opt/typesafe/backend; systemctl restart --no-block typesafe-api",
        "runbooks/failed_deploy.yml",
    ),
)

# Why an alert has no drill.
WITHOUT = {
    "ApiSlow": "The API answers or refuses within a second whatever Redis does, so only a starved CPU makes it slow; "
    "that would slow down what measures it. promtool tests the rule.",
    "CertificateExpires": "The playbook renews a certificate in its last 30 days, and this scenario has no TLS. "
    "promtool tests the rule, the doctor reads the certificate itself.",
    "ClockWrong": "The test hosts' clock is that of the machine. promtool tests the rule.",
    "MemoryLow": "The test hosts' memory is that of the machine. promtool tests the rule.",
    "RedisDenies": "Its runbook replaces every secret, which wants a vault file: the scenario default "
    "rotates them under load. The look alone is run here. promtool tests the rule.",
    "Watchdog": "It fires always; the drills would notice when it did not.",
}
