"""Filters of the firewall role: what is wrong with an inventory's values, and how nftables takes its addresses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any


def malformed(networks: list[str]) -> list[str]:
    """Return the entries that are neither an address nor a network."""

    def is_network(value: str) -> bool:
        try:
            ip_network(value)
        except ValueError:
            return False
        return True

    return [str(value) for value in networks if not is_network(str(value))]


def firewall_sources(networks: list[str]) -> dict[str, list[str]]:
    """Sort addresses and networks by nftables' family; leave out contained ones, which nft would reject."""
    parsed = [ip_network(str(value)) for value in networks]
    version_4 = collapse_addresses(network for network in parsed if isinstance(network, IPv4Network))
    version_6 = collapse_addresses(network for network in parsed if isinstance(network, IPv6Network))
    return {"ip": [str(network) for network in version_4], "ip6": [str(network) for network in version_6]}


def ssh_errors(port: int, networks: list[str], connection: str) -> Iterator[str]:
    """Say what would lock Ansible out; ``connection`` is SSH_CONNECTION, empty when Ansible came in another way."""
    if not 1 <= int(port) <= 65535:
        yield f"firewall_ssh_port is {port}, but a port is a number from 1 to 65535."
        return
    if wrong := malformed(networks):
        yield f"firewall_ssh_from holds {', '.join(wrong)}, but it must be made of IP addresses and networks."
        return
    if not connection:
        return
    client, _, _, server_port = connection.split()
    if int(server_port) != int(port):
        yield (
            f"Ansible came in through port {server_port}, but firewall_ssh_port is {port}, which would lock it out:"
            f" set firewall_ssh_port to {server_port}."
        )
    address = ip_address(client.partition("%")[0])
    if not any(address in ip_network(str(network)) for network in networks):
        shown = ", ".join(map(str, networks)) or "empty"
        yield f"Ansible came in from {client}, which firewall_ssh_from ({shown}) would lock out: add that address."


def firewall_errors(allow: list[dict[str, Any]], ssh_port: int, ssh_from: list[str], connection: str) -> list[str]:
    """Say in one sentence each what is wrong."""
    errors = list(ssh_errors(ssh_port, ssh_from, connection))
    for rule in allow:
        name = str(rule["name"])
        if not re.fullmatch(r"[A-Za-z0-9 ._/-]{1,64}", name):
            errors.append(
                f"A rule of firewall_allow is named '{name}', but a name must be up to 64 letters, digits, spaces,"
                " dots, slashes, hyphens and underscores."
            )
        if rule.get("protocol") != "vrrp" and not 1 <= int(rule.get("port", 0)) <= 65535:
            given = rule.get("port", "not given")
            errors.append(f"The port of '{name}' is {given}, but a port is a number from 1 to 65535.")
        if "connections" in rule and (int(rule["connections"]) < 1 or rule.get("protocol", "tcp") != "tcp"):
            errors.append(
                f"'{name}' has connections: {rule['connections']}, but it must be at least 1, and there are connections"
                " with the protocol tcp alone."
            )
        if not isinstance(rule.get("from", []), list | tuple):
            errors.append(f"'{name}' may be reached from {rule['from']}, but that must be a list, like [10.0.0.5].")
        elif wrong := malformed(rule.get("from", [])):
            errors.append(
                f"'{name}' may be reached from {', '.join(wrong)}, but that must be IP addresses and networks like"
                " 10.0.0.5 or 10.0.0.0/24."
            )
    return errors


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name the filters."""
        return {"firewall_errors": firewall_errors, "firewall_sources": firewall_sources}
