"""Who counts as one client, for every limit of API and Flower."""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

# A client has a whole network of this size, so that it cannot come from a new address each time (RFC 6177, section 2).
IPV6_PREFIX = 64
# Characters of an IPv6 address with a port at most; what is longer is not looked at.
LONGEST_ENTRY = 54
# Entries of X-Forwarded-For that are looked at, from the right.
MOST_PROXIES = 16


@lru_cache(maxsize=1024)
def counted_as(address: str) -> str:
    """Return under which name a client is counted: its address, of IPv6 the /64 network; "" for what is no address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        if not parsed.is_loopback:
            return str(ip_network((int(parsed), IPV6_PREFIX), strict=False))
    return str(parsed)


def client_address(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """Return the address of the client that a request comes from.

    Each proxy appends whom it has seen: from the right, the first entry that is no trusted proxy is the client. What is
    to the left of it may be forged, and an entry that is no address ends the search.

    Args:
        peer: address at the other end of the connection.
        forwarded: X-Forwarded-For, all of its lines joined by commas.
        trusted: the proxies that are believed.
    """
    address = peer
    for entry in reversed(forwarded.rsplit(",", MOST_PROXIES)[-MOST_PROXIES:] if forwarded else []):
        if not _is_trusted(address, trusted):
            break
        if (seen := _parse(entry.strip())) is None:
            break
        address = seen
    return address


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in trusted)


def _parse(entry: str) -> str | None:
    """Return the address of an entry, which some proxies write with a port."""
    if len(entry) > LONGEST_ENTRY:
        return None
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    try:
        return str(ip_address(entry))
    except ValueError:
        return None
