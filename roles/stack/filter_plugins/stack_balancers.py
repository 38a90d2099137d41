"""Filters of the stack role: whom a balancer sends requests to, and whose word on clients is believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Any

LOOPBACK = ("127.", "[::1]", "::1", "localhost")
ANY = ("0.0.0.0", "[::]", "::")  # noqa: S104 - what an inventory may say


def balancer_servers(
    hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]], balancer: str, service: str, port: int
) -> list[dict[str, str]]:
    """Return name and address of each host's service that the balancer can reach.

    Args:
        hosts: the service's hosts.
        hostvars: variables of all hosts.
        balancer: the balancer's name.
        service: prefix of the variables that say where it listens, like ``api`` of ``api_bind`` and ``api_port``.
        port: where it listens unless its host says something else.
    """
    servers = []
    for host in hosts:
        variables = hostvars[host]
        bind = str(variables.get(f"{service}_bind", "127.0.0.1"))
        if bind.startswith(LOOPBACK) and host != balancer:
            continue
        address = (_address(variables) if bind in ANY else bind).strip("[]")
        address = f"[{address}]" if ":" in address else address
        servers.append({"name": host, "address": f"{address}:{variables.get(f'{service}_port', port)}"})
    return servers


def no_networks(values: list[str]) -> list[str]:
    """Return the entries that are neither an address nor a network."""

    def is_network(value: str) -> bool:
        try:
            ip_network(value)
        except ValueError:
            return False
        return True

    return [str(value) for value in values if not is_network(str(value))]


def _address(host: Mapping[str, Any]) -> str:
    route = host.get("ansible_facts", {}).get("default_ipv4", {})
    return str(host.get("private_address") or route.get("address", ""))


class FilterModule:
    """The filter under its name in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about it."""
        return {"balancer_servers": balancer_servers, "no_networks": no_networks}
