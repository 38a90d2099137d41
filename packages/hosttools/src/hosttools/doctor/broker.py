"""The instance that holds the queues."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, QUEUES, RIGHTS, WARNING, Finding
from hosttools.redis_client import Redis

BROKER_MEMORY = 0.7  # of its limit
# Looks of SCAN at 10,000 keys each: two million, some 10 ms for each look.
MOST_SCANS = 200


@apart
def broker(info: dict[str, str]) -> Iterator[Finding]:
    """Look at what holds for the queue's instance alone."""
    if info.get("maxmemory_policy") != "noeviction":
        evicts = f"the broker evicts ({info.get('maxmemory_policy')}): tasks may be lost"
        yield Finding(CRITICAL, evicts, "BrokerEvicts", RIGHTS)
    if int(info.get("evicted_keys", 0)):
        yield Finding(CRITICAL, f"the broker has evicted {info['evicted_keys']} keys", "BrokerEvicts", RIGHTS)
    limit = int(info.get("maxmemory", 0))
    if limit and int(info["used_memory"]) > BROKER_MEMORY * limit:
        share = int(info["used_memory"]) / limit
        yield Finding(WARNING, f"the broker uses {share:.0%} of its memory", "RedisMemoryHigh", RIGHTS)


@apart
def shapes(connection: Redis, queues: Sequence[str] = ("celery",)) -> Iterator[Finding]:
    """Look whether the broker's keys are what the application takes them for."""
    for key, found, kind in misshapen(connection, queues):
        what = f"the broker's key {key} is a {found} instead of a {kind}, every use of it fails: RENAME it away"
        yield Finding(CRITICAL, what, "drift", RIGHTS)


def misshapen(connection: Redis, queues: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Return the keys of another type than the application takes them for: name, type and the one it needs."""
    wanted = dict.fromkeys([*queues, "dead_letters", "failures"], "list") | {"accepted": "hash", "workers": "hash"}
    for key, kind in {**wanted, "figures": "hash", "alerts": "hash", "unacked_leases": "zset"}.items():
        if (found := connection.call("TYPE", key)) not in (kind, "none"):
            yield key, found, kind


@apart
def unnamed(connection: Redis, queues: Sequence[str]) -> Iterator[Finding]:
    """Find tasks in queues that no pool, route or setting names: no worker takes them, no metric counts them."""
    held, cursor, rounds = Counter[str](), "0", 0
    while queues and rounds < MOST_SCANS and (cursor != "0" or not rounds):
        rounds += 1
        answer = connection.call("SCAN", cursor, "COUNT", "10000", "TYPE", "list")
        cursor, found = answer if isinstance(answer, list) else ("0", [])
        for key in found:
            kind, _, rest = key.partition(":")
            name = {"deferred": rest, "unacked": rest.partition(":")[2]}.get(kind, key)
            if name not in queues and not name.endswith(".pidbox") and is_task(connection.call("LINDEX", key, "-1")):
                held[name] += int(str(connection.call("LLEN", key)))
    for name, count in sorted(held.items()):
        remedy = f"name it in celery_worker_pools, or playbooks/ops/move_queue.yml -e from={name!r} -e to=QUEUE"
        what = f"{count} tasks are in the queue {name!r}, which no pool, route or setting names: {remedy}"
        yield Finding(WARNING, what, "QueueTooOld", QUEUES)


def is_task(entry: object) -> bool:
    """Tell whether an entry of a list has the form that Celery gives a task."""
    try:
        message = json.loads(str(entry))
        return "properties" in message and "task" in message["headers"]
    except (ValueError, TypeError, KeyError):
        return False
