"""Filters of the stack role: what runs in containers, from the variables of the roles that install it on hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# systemd.exec(5): the suffixes are powers of 1024.
UNITS = {"M": 1024**2, "G": 1024**3}


def memory_bytes(size: str, total: int) -> int:
    """Return the bytes that systemd makes of MemoryMax=``size`` (512M, 2G, 25%) on a host with ``total`` bytes."""
    number, unit = int(size[:-1]), size[-1]
    return total * number // 100 if unit == "%" else number * UNITS[unit]


def worker_services(
    pools: list[Mapping[str, Any]],
    every: Mapping[str, Any],
    options: list[str],
    environments: list[Mapping[str, str]],
    pids: list[int],
) -> list[dict[str, Any]]:
    """Return a service for each of the worker's pools; the pool "default" has the plain name.

    Args:
        pools: celery_worker_pools.
        every: what all have: ``command`` without the pool's options, ``concurrency`` and ``queues`` of those without.
        options: each pool's kind, as Celery's ``--pool`` has it.
        environments: what each pool has in its environment besides.
        pids: how many processes and threads each pool may have.
    """
    services = []
    for pool, option, environment, most in zip(pools, options, environments, pids, strict=True):
        concurrency = int(pool.get("concurrency", every["concurrency"]))
        command = [
            *every["command"],
            # A container's host name is its own, and stays when it starts again (docs/decisions/0010).
            f"--hostname={pool['name']}@%h",
            f"--queues={','.join(pool.get('queues', every['queues']))}",
            f"--pool={option}",
            f"--concurrency={concurrency}",
        ]
        name = "celery-worker" if pool["name"] == "default" else f"celery-worker-{pool['name']}"
        own = {"name": name, "command": command, "concurrency": concurrency, "pids": most}
        services.append({**every, **own, "environment": {**every["environment"], **environment}})
    return services


def redis_services(instances: list[Mapping[str, Any]], maxmemory: list[int]) -> list[dict[str, Any]]:
    """Return a service for each instance of Redis: the one called main is "redis", any other "redis-NAME".

    A snapshot may need as much memory again as the data (docs/decisions/0002-redis-configuration.md).
    """
    return [
        {
            "name": "redis" if instance["name"] == "main" else f"redis-{instance['name']}",
            "instance": instance["name"],
            "port": instance["port"],
            "memory": 2 * data + 64 * UNITS["M"],
        }
        for instance, data in zip(instances, maxmemory, strict=True)
    ]


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about them."""
        return {
            "memory_bytes": memory_bytes,
            "redis_services": redis_services,
            "worker_services": worker_services,
        }
