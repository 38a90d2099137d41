"""Runs site.yml's preflight over many inventories at once and tells what it says of each."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import ansible_report

HERE = Path(__file__).parent
SECRETS = (
    *("redis_password", "sentinel_password", "flower_password", "backend_api_key", "task_signing_key"),
    *("control_signing_key", "monitoring_password", "metrics_api_key"),
)
# Each host's rules look at all hosts: a few inventories of this size take less time than one with all cases.
HOSTS_AT_ONCE = 25
REDIS_USERS = ("worker", "api", "flower", "exporter", "operator", "replication", "sentinel")


@dataclass
class Case:
    """One inventory: its variables (None takes one away), words that its error must hold, and its facts."""

    variables: dict[str, Any]
    words: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    hidden: str = ""

    def judge(self, message: str) -> None:
        """Fail unless the message holds the words and no secret; without words it must be empty."""
        assert bool(message) == bool(self.words), message or "nothing was rejected"
        assert all(word in message for word in self.words), message
        assert not self.hidden or self.hidden not in message


def preflight_errors(
    cases: dict[str, Case],
    directory: Path,
    *,
    monitoring: tuple[str, ...] = (),
    logs: tuple[str, ...] = (),
    sentinels: tuple[str, ...] = (),
    balancers: tuple[str, ...] = (),
    **env: str,
) -> dict[str, str]:
    """Make each case a host that runs everything; return each host's error, empty where there was none.

    The hosts in ``monitoring`` watch all others, those in ``logs`` take their logs, those in ``sentinels`` their Redis;
    those in ``balancers`` stand before the API. ``env`` goes to Ansible.
    """
    hosts = {}
    for name, case in cases.items():
        good: dict[str, Any] = {secret: secrets.token_urlsafe(48) for secret in SECRETS}
        good["redis_user_passwords"] = {user: secrets.token_urlsafe(24) for user in REDIS_USERS}
        good["private_network"] = True
        variables = {key: value for key, value in {**good, **case.variables}.items() if value is not None}
        # Nothing of this machine is looked at that needs rights.
        hosts[name] = {**variables, "facts": case.facts, "ansible_become": False}
    children: dict[str, Any] = {
        group: {"hosts": {name: {} for name in hosts}} for group in ("redis", "workers", "api", "flower")
    }
    children["monitoring"] = {"hosts": {name: {} for name in monitoring}}
    children["sentinels"] = {"hosts": {name: {} for name in sentinels}}
    children["balancers"] = {"hosts": {name: {} for name in balancers}}
    children["logs"] = {"hosts": {name: {} for name in logs}}
    inventory = directory / "hosts.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "children": children}}))

    report = ansible_report(f"--inventory={inventory}", HERE / "preflight.yml", **env)
    messages = dict.fromkeys(hosts, "")
    for play in report["plays"]:
        for task in play["tasks"]:
            for name, outcome in task["hosts"].items():
                if outcome.get("failed"):
                    items = [item["msg"] for item in outcome.get("results", []) if item.get("failed")]
                    messages[name] = " ".join(items or [outcome["msg"]])
    for name, counts in report["stats"].items():
        assert counts["changed"] == 0, f"{name}: the preflight changed something"
    return messages


def preflight_errors_of_many(cases: dict[str, Case], directory: Path) -> dict[str, str]:
    """Return what ``preflight_errors`` does, for cases that have nothing to do with one another."""
    messages: dict[str, str] = {}
    for first in range(0, len(cases), HOSTS_AT_ONCE):
        messages |= preflight_errors(dict(list(cases.items())[first : first + HOSTS_AT_ONCE]), directory)
    return messages
