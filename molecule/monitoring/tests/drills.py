"""The fire drills: each brings a fault, waits for its alert, and repairs it as the alert's page says."""

from __future__ import annotations

from dataclasses import dataclass

MAIN, WORKER = "monitoring-main", "monitoring-worker"

# Begin a command: the administrator's redis-cli, and a client of the API; their secrets come from files.
REDIS = "REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis-broker.conf) redis-cli -e -p 6380"
API = (
    "grep -o '[^, ]*' /etc/typesafe/secrets/api/BACKEND_API_KEY | sed 's/^/X-API-Key: /;q' >/run/drill-key;"
    "curl -sS -o /dev/null -H @/run/drill-key -H 'Content-Type: application/json' http://127.0.0.1:8000"
)


def tasks(count: int, data: str = "{}") -> str:
    """Return a command that hands in tasks."""
    return f"for i in $(seq {count}); do {API}/tasks/enqueue -d '{{\"data\": {data}}}'; done"


@dataclass(frozen=True)
class Drill:
    """One row of docs/drills.md."""

    fault: str
    alert: str
    inject: str  # commands, as root
    runbook: str  # below playbooks/
    variables: str = ""  # that the person gives it
    on: tuple[str, ...] = (MAIN,)  # where the commands run
    outside: str = ""  # what others mend meanwhile: a provider, a network
    clean: str = "true"  # what the drill itself has left
    slow: bool = False  # its alert takes minutes: begun before the others, met after them
    looks: bool = True  # whether the runbook has a first look that changes nothing
