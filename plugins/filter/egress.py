"""Where a service may connect to: one list of rules, for the unit's filter, nftables and Kubernetes alike.

A rule is ``{name, to, ports, protocol}``: addresses and networks, port numbers, tcp or udp. Without ``to`` it means the
public internet, without ``ports`` all of them, without ``protocol`` tcp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any

EVERYWHERE = ["0.0.0.0/0", "::/0"]
LOOPBACK = ["127.0.0.1", "::1"]
# What is no public address: IANA's registries of special-purpose addresses (RFC 6890), multicast and reserved ones.
CLOSED_4 = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    "224.0.0.0/3",
]
# Hosts without IPv4 reach its public addresses below this prefix (NAT64, RFC 6052), and may not reach the others there.
NAT64 = IPv6Network("64:ff9b::/96")
# The public IPv6 internet is 2000::/3 (RFC 4291, section 2.4). Outside of it are forms of IPv4 addresses, like SIIT's
# ::ffff:0:10.0.0.1, private networks, and networks that people lay over others, like 200::/7.
CLOSED_6 = [
    *map(str, sorted(IPv6Network("::/3").address_exclude(IPv6Network("64::/16")))),
    *("64:ff9b:1::/48", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1"),
]


def _behind_nat64() -> list[str]:
    closed = map(IPv4Network, CLOSED_4)
    return [str(IPv6Network((int(NAT64[0]) | int(inner[0]), NAT64.prefixlen + inner.prefixlen))) for inner in closed]


def egress_closed(family: str) -> list[str]:
    """Return the networks of a family (``ip`` or ``ip6``) that are not the public internet."""
    return CLOSED_4 if family == "ip" else CLOSED_6 + _behind_nat64()


def egress_rules(rules: Iterable[Mapping[str, Any]], named: bool) -> list[dict[str, Any]]:
    """Return the rules that name addresses, or those that do not, with every key.

    ``to`` becomes a mapping of ``ip`` and ``ip6`` to networks of which none contains another, which nft would reject.
    """
    wanted = [rule for rule in rules if ("to" in rule) == named]
    return [
        {
            "name": rule["name"],
            "named": named,
            "protocol": rule.get("protocol") or "tcp",
            "ports": [int(port) for port in rule.get("ports") or []],
            "to": _by_family(rule["to"] if named else EVERYWHERE),
        }
        for rule in wanted
    ]


def _by_family(networks: Iterable[Any]) -> dict[str, list[str]]:
    parsed = [ip_network(str(network)) for network in networks]
    version_4 = collapse_addresses(network for network in parsed if isinstance(network, IPv4Network))
    version_6 = collapse_addresses(network for network in parsed if isinstance(network, IPv6Network))
    return {"ip": [str(network) for network in version_4], "ip6": [str(network) for network in version_6]}


def egress_statements(rules: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the nft statements that decide on a new connection; whatever no rule allows jumps to ``refuse_egress``."""
    # Other services of this host, at whichever of its addresses; and all that is not the public internet.
    closed = ["fib daddr type != unicast jump refuse_egress"]
    closed += [
        f"{family} daddr {{ {', '.join(egress_closed(family))} }} jump refuse_egress" for family in ("ip", "ip6")
    ]
    rules = list(rules)
    return [*_accepts(egress_rules(rules, True)), *closed, *_accepts(egress_rules(rules, False)), "jump refuse_egress"]


def _accepts(rules: Iterable[Mapping[str, Any]]) -> list[str]:
    accepts = []
    for rule in rules:
        ports = ", ".join(map(str, rule["ports"]))
        protocol = f"{rule['protocol']} dport {{ {ports} }}" if ports else f"meta l4proto {rule['protocol']}"
        accepts += [
            f'{family} daddr {{ {", ".join(networks)} }} {protocol} accept comment "{rule["name"]}"'
            for family, networks in rule["to"].items()
            if networks
        ]
    return accepts


def egress_allowed(rules: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the named networks of all rules, for systemd's ``IPAddressAllow=``, which knows no ports."""
    by_family = _by_family(network for rule in rules for network in rule.get("to", []))
    return by_family["ip"] + by_family["ip6"]


def egress_denied(rules: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what else is closed, for ``IPAddressDeny=``: everything, or all but the public internet."""
    if any("to" not in rule for rule in rules):
        return egress_closed("ip") + egress_closed("ip6")
    return ["any"]


def egress_host(host: str) -> list[str]:
    """Return the addresses of a host; a packet filter knows no names, so one may be anywhere."""
    try:
        return [str(ip_address(host))]
    except ValueError:
        return LOOPBACK if host == "localhost" else EVERYWHERE


def egress_resolvers(dns: Mapping[str, Any] | None) -> list[str]:
    """Return the addresses of the resolvers in Ansible's fact ``dns``; everywhere where it was not gathered."""
    if dns is None:
        return EVERYWHERE
    addresses = []
    for server in dns.get("nameservers") or []:
        try:
            addresses.append(str(ip_address(str(server).partition("%")[0])))
        except ValueError:
            continue  # the C library ignores it as well
    # It queries this host where /etc/resolv.conf names no server.
    return addresses or LOOPBACK


def egress_errors(rules: Iterable[Mapping[str, Any]], variable: str) -> list[str]:
    """Say in one sentence each what is wrong with the rules of a variable."""
    return [sentence for rule in rules if (sentence := _error(rule, variable))]


def _error(rule: Mapping[str, Any], variable: str) -> str:
    name = str(rule.get("name", ""))
    if not re.fullmatch(r"[A-Za-z0-9 ._/-]{1,64}", name):
        return (
            f"A rule of {variable} is named '{name}', but a name must be up to 64 letters, digits, spaces, dots,"
            " slashes, hyphens and underscores."
        )
    for key in ("to", "ports"):
        if key in rule and not (isinstance(rule[key], list) and rule[key]):
            return f"'{name}' of {variable} has {rule[key]!r} as {key}: make it a list with entries, or leave it out."
    for port in rule.get("ports", []):
        if not re.fullmatch(r"[0-9]{1,5}", str(port)) or not 1 <= int(port) <= 65535:
            return f"'{name}' of {variable} has the port {port}, but a port is a number from 1 to 65535."
    for network in rule.get("to", []):
        try:
            ip_network(str(network))
        except ValueError:
            return (
                f"'{name}' of {variable} leads to {network}, but that must be IP addresses and networks like 10.0.0.5"
                " or 10.0.0.0/24, because a packet filter knows no names."
            )
    return ""


class FilterModule:
    """Ansible's filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return them by name."""
        return {
            "egress_allowed": egress_allowed,
            "egress_closed": egress_closed,
            "egress_denied": egress_denied,
            "egress_host": egress_host,
            "egress_errors": egress_errors,
            "egress_resolvers": egress_resolvers,
            "egress_rules": egress_rules,
            "egress_statements": egress_statements,
        }
