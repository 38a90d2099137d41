"""How URLs and HOST:PORT name a host."""

from __future__ import annotations

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


class FilterModule:
    """Ansible's filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return them by name."""
        return {"listen_host": listen_host, "url_host": url_host}
