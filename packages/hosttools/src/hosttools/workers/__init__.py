"""How the workers of this host are, and why: changes nothing, prints JSON.

Runs on the host as root. On a worker's host it looks at each pool's unit or program and at the memory of its processes,
and tries what a worker does first, as the worker's own user: import the application, reach Redis. On the broker's host
it reads when each worker last sent its heartbeat.
"""

import argparse
import re
import socket
from pathlib import Path
from typing import Any

from hosttools import files, process
from hosttools.findings import tell
from hosttools.redis_client import Instance, RedisError
from hosttools.workers import start, supervision


def releases(prefix: str) -> dict[str, Any]:
    """Return the live release and the other complete ones, the one that was live last first."""
    root = Path(f"/opt/{prefix}")
    live = (root / "backend").resolve()
    return {"live": live.name, "others": [release.name for release in files.kept_releases(root, live)]}


def look(pool: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how a pool's worker is."""
    suffix = "" if pool == "default" else f"-{pool}"
    if arguments.supervisor:
        unit = f"{arguments.prefix}-celery-worker{suffix}"
        seen = supervision.under_supervisor(unit, arguments.prefix)
    else:
        unit = f"{arguments.prefix}-celery{suffix}"
        seen = supervision.under_systemd(unit)
    seen["processes"] = supervision.processes(seen["pid"]) if seen["pid"] else []
    if seen["state"] == "running" and seen["processes"]:
        main = seen["processes"][0]
        if main["halted"]:
            seen["state"] = "halted"
        elif seen["ends"] > supervision.LOOP_ENDS and main["age"] < supervision.SETTLED_SECONDS:
            seen["state"] = "crashing"
    seen["shared"] = bool(seen["processes"]) and supervision.shares_processes(seen["pid"])
    return {"unit": unit, "node": f"{pool}@{socket.gethostname()}", **seen}


def memory() -> dict[str, Any]:
    """Return the host's memory in MiB, its largest programs, and the kernel's kills for lack of it within a day."""
    sizes = dict(re.findall(r"^(\w+): +(\d+) kB", files.read("/proc/meminfo"), re.MULTILINE))
    kernel = supervision.journal("--dmesg", "--since=-24hours")
    largest = process.run(
        "ps", "-eo", "rss=,pid=,comm=", "--sort=-rss", timeout=supervision.TIMEOUT
    ).output.splitlines()[:3]
    words = [line.split(maxsplit=2) for line in largest]
    return {
        "total": int(sizes["MemTotal"]) // 1024,
        "available": int(sizes["MemAvailable"]) // 1024,
        "kernel_kills": len(re.findall(r"Killed process", kernel)),
        "largest": [f"{name} (process {pid}) {int(rss) // 1024} MiB" for rss, pid, name in words],
    }


def heartbeats(instance: str) -> dict[str, int] | None:
    """Return the seconds since each worker's last heartbeat; None when the broker does not answer."""
    try:
        with Instance(instance).connect(supervision.TIMEOUT) as redis:
            now, answer = int(redis.call("TIME")[0]), redis.call("HGETALL", "workers")
    except (OSError, RedisError):
        return None
    return {node: now - int(state.split()[0]) for node, state in zip(answer[::2], answer[1::2], strict=True)}


def settings(prefix: str) -> dict[str, str]:
    """Return the application's settings as they were deployed; no secret is among them."""
    found = files.settings(f"/etc/{prefix}/backend.env")
    # An application that does not read the platform's names has them by the library's alone.
    return {name.removeprefix("DURABLE_"): value for name, value in found.items()} | found


def main() -> None:
    """Look at what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", required=True, help="the installation's name")
    parser.add_argument("--pool", action="append", default=[])
    parser.add_argument("--supervisor", action="store_true", help="supervisor runs the workers, not systemd")
    parser.add_argument("--secret", action="append", default=[], help="a secret file that a worker needs")
    parser.add_argument("--broker", metavar="INSTANCE", help="this host's Redis instance that holds the queue")
    arguments = parser.parse_args()
    told: dict[str, Any] = {"memory": memory(), "settings": settings(arguments.prefix)}
    if arguments.pool:
        told["workers"] = [look(pool, arguments) for pool in arguments.pool]
        told["obstacle"] = start.obstacle(arguments.prefix, arguments.prefix, arguments.secret)
        told["releases"] = releases(arguments.prefix)
    if arguments.broker:
        told["signs"] = heartbeats(arguments.broker)
    tell(told)
