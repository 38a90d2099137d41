"""How URLs and HOST:PORT name a host."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

# Who listens on all addresses is reached at the loopback one.
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is replaced


def url_host(address: str) -> str:
    """Return a host as a URL names it: an address of IPv6 in brackets, the loopback address for all addresses."""
    bare = str(address).removeprefix("[").removesuffix("]")
    return listen_host(ANY.get(bare, bare))


def listen_host(address: str) -> str:
    """Return an address as HOST:PORT names it where a program listens: one of IPv6 in brackets."""
    bare = str(address).removeprefix("[").removesuffix("]")
    return f"[{bare}]" if ":" in bare else bare


def first_address(network: str) -> str:
    """Return the address of a network that container engines give to the host: 10.0.0.1 of 10.0.0.0/24."""
    return str(IPv4Network(network)[1])


def container_addresses(network: str) -> list[str]:
    """Return the parts of a network that are left for containers, in which the host's address is not."""
    return [str(part) for part in IPv4Network(network).address_exclude(IPv4Network(first_address(network)))]


def network_error(network: str, used: Iterable[str]) -> str:
    """Return why containers cannot have a network, in one sentence; ``used`` are the addresses of the host."""
    try:
        parsed = IPv4Network(network)
    except ValueError:
        parsed = None
    if parsed is None or "/" not in network or not parsed.is_private or not 8 <= parsed.prefixlen <= 28:
        return f"is '{network}', but it must be a private IPv4 network from /8 to /28, such as 172.31.213.0/24."
    taken = [each for each in used if IPv4Address(each) in parsed and each != first_address(network)]
    if taken:
        return f"is {network}, where this host has the address {taken[0]} already; choose an unused network."
    return ""


class FilterModule:
    """Ansible's filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return them by name."""
        return {
            "container_addresses": container_addresses,
            "first_address": first_address,
            "listen_host": listen_host,
            "network_error": network_error,
            "url_host": url_host,
        }
