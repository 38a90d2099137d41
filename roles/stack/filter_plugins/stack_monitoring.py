"""Filters of the stack role: whom a monitoring host asks, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def monitoring_address(host: Mapping[str, Any]) -> str:
    """Return where a host is reached by others, from its variables: what the inventory says, else its default route."""
    route = host.get("ansible_facts", {}).get("default_ipv4", {})
    return str(host.get("private_address") or route.get("address", ""))


def monitoring_targets(hosts: list[str], addresses: dict[str, str], port: int) -> list[dict[str, str]]:
    """Return an entry for each host: its name, and the address at which its ``port`` is asked."""
    return [{"host": host, "address": _at(addresses[host], port)} for host in hosts]


def monitoring_redis_targets(
    hosts: list[str], addresses: dict[str, str], port: int, instances: dict[str, int], scheme: str
) -> list[dict[str, str]]:
    """Return an entry for each Redis instance of each host: also what its exporter, at ``port``, is to ask.

    Args:
        hosts: the hosts that run Redis.
        addresses: host -> address.
        port: the exporter's.
        instances: name of each instance -> its port.
        scheme: redis or rediss.
    """
    return [
        {**target, "instance": name, "target": f"{scheme}://127.0.0.1:{redis_port}"}
        for target in monitoring_targets(hosts, addresses, port)
        for name, redis_port in instances.items()
    ]


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about them."""
        return {
            "monitoring_address": monitoring_address,
            "monitoring_redis_targets": monitoring_redis_targets,
            "monitoring_targets": monitoring_targets,
        }
