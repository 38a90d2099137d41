"""Filters of the stack role: the releases that hosts run and have kept, and which one a rollback goes to.

A host is given by its variables, with what playbooks/ops/rollback.yml has registered. A release's directory is called
ID-PYTHON; its time is when it was last live (roles/app_release/tasks/switch.yml), or lies before NEVER.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

# What was installed and never live bears 1980.
NEVER = datetime(1990, 1, 1, tzinfo=UTC).timestamp()

Host = Mapping[str, Any]


def releases_kept(hosts: list[Host]) -> list[str]:
    """Return a line for each release of each host, the live one first, then the one that was live last."""
    lines = []
    for host in hosts:
        live = _live(host)
        lines.append(f"{host['inventory_hostname']}: {live} is live")
        for name, moment in _others(host):
            when = datetime.fromtimestamp(moment, UTC).strftime("was live until %Y-%m-%d %H:%M UTC")
            lines.append(f"{host['inventory_hostname']}: {name} {when if moment > NEVER else 'was never live'}")
    return lines


def release_before(hosts: list[Host]) -> str:
    """Return the id of the release that was live last, before the live one; nothing when there is none.

    All hosts must have it, and it must have gone well on all of them: one that failed on a later host was live on those
    before it for a while.
    """
    moments: dict[str, list[float]] = {}
    for host in hosts:
        for name, moment in _others(host):
            moments.setdefault(_id(name), []).append(moment)
    former = [(max(when), name) for name, when in moments.items() if min(when) > NEVER]
    return max(((when, name) for when, name in former if not release_lacking(hosts, name)), default=(0, ""))[1]


def release_lacking(hosts: list[Host], release: str) -> list[str]:
    """Return the hosts that have no complete release of this id."""
    return [host["inventory_hostname"] for host in hosts if not release_directory(host, release)]


def release_directory(host: Host, release: str) -> str:
    """Return the directory of a host's release of this id; nothing when there is none."""
    paths = [PurePath(file["path"]).parent for file in host["rollback_complete"]["files"]]
    return next((str(path) for path in paths if release and release in {path.name, _id(path.name)}), "")


def releases_running(hosts: list[Host]) -> str:
    """Return which hosts run which release, from ``roll_runs``, in the order of the hosts."""
    runs: dict[str, list[str]] = {}
    for host in hosts:
        runs.setdefault(host.get("roll_runs", "what this run has not seen"), []).append(host["inventory_hostname"])
    return "; ".join(f"{', '.join(names)}: {release}" for release, names in runs.items())


def own_url(host: Host, service: str, port: int) -> str:
    """Return where a service (api, flower) of a host of a host listens for the host itself."""
    address = str(host.get(f"{service}_bind", "127.0.0.1")).strip("[]")
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - what is replaced
    address = f"[{address}]" if ":" in address else address
    return f"http://{address}:{host.get(f'{service}_port', port)}"


def _live(host: Host) -> str:
    return PurePath(host["rollback_live"]["stat"].get("lnk_source", "no release")).name


def _others(host: Host) -> list[tuple[str, float]]:
    complete = {PurePath(file["path"]).parent.name for file in host["rollback_complete"]["files"]}
    times = {PurePath(file["path"]).name: file["mtime"] for file in host["rollback_found"]["files"]}
    others = [(name, moment) for name, moment in times.items() if name in complete - {_live(host)}]
    return sorted(others, key=lambda other: other[1], reverse=True)


def _id(name: str) -> str:
    return name.partition("-")[0]


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about them."""
        return {
            "own_url": own_url,
            "release_before": release_before,
            "release_directory": release_directory,
            "release_lacking": release_lacking,
            "releases_kept": releases_kept,
            "releases_running": releases_running,
        }
