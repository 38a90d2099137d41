"""Filters of the stack role: which users an instance of Redis gets, and how they reach it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote


def redis_users(
    rules: dict[str, dict[str, dict[str, list[str]]]],
    parts: list[str],
    passwords: dict[str, str],
    previous: dict[str, str],
    *,
    queue: str = "celery",
    own_keys: Sequence[str] = ("app:*",),
) -> list[dict[str, Any]]:
    """Return the users of an instance that plays these parts (broker, results, data), as the redis role takes them.

    A user without rules for any of them is left out.

    Args:
        rules: user -> part -> rules, may and may_not.
        parts: what the instance is for.
        passwords: user -> password.
        previous: user -> password that is still accepted while clients change over.
        queue: one of the application's; what users may do is tried with it.
        own_keys: what the application keeps for itself, the same.
    """

    def tried(commands: list[str]) -> list[str]:
        own = own_keys[0].replace("*", "1") if own_keys else ""
        # As a whole name, not in /0.celery.pidbox or celery-task-meta-1.
        named = [re.sub(r"(?<![\w./-])celery(?![\w.*-])", queue, command) for command in commands]
        return [re.sub(r"\bapp:1\b", own, command) for command in named if own or "app:1" not in command]

    users = []
    for name, by_part in rules.items():
        if not (wanted := [by_part[part] for part in parts if part in by_part]):
            continue
        users.append(
            {
                "name": name,
                "passwords": [passwords[name], *([previous[name]] if name in previous else [])],
                "rules": _unique(rule for part in wanted for rule in part["rules"]),
                "may": tried(_unique(command for part in wanted for command in part["may"])),
                # What one part forbids the other may need.
                "may_not": tried(
                    [command for command in wanted[0]["may_not"] if all(command in part["may_not"] for part in wanted)]
                ),
            }
        )
    return users


def redis_urls(passwords: dict[str, str], results: str, broker: str, ca_file: str = "") -> dict[str, dict[str, str]]:
    """Return for each user the URLs by which it reaches Redis, by the names of the application's variables.

    Args:
        passwords: user -> password.
        results: HOST:PORT of the instance that holds results.
        broker: the same of the queue's.
        ca_file: the certificates that Redis' is verified with; with them the URLs are for TLS.
    """
    scheme, options = ("rediss", f"?ssl_cert_reqs=required&ssl_ca_certs={ca_file}") if ca_file else ("redis", "")
    urls = {}
    for name, password in passwords.items():
        login = f"{scheme}://{name}:{quote(password, safe='')}@"
        urls[name] = {
            "REDIS_URL": f"{login}{results}{options}",
            "CELERY_BROKER_URL": f"{login}{broker}/0{options}",
            "CELERY_RESULT_BACKEND": f"{login}{results}/1{options}",
        }
    return urls


def sentinel_address(host: Mapping[str, Any]) -> str:
    """Return HOST:PORT of the sentinel on a host, from the host's variables."""
    return f"{host.get('private_address', '')}:{host.get('redis_sentinel_port', 26379)}"


def redis_primary(instance: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Return what sentinels are told of an instance: its name, and where it is as long as nobody knows better."""
    return {"name": instance["name"], "host": host, "port": instance["port"]}


def sentinel_urls(
    passwords: dict[str, str], sentinels: list[str], own_password: str, ca_file: str = ""
) -> dict[str, dict[str, str]]:
    """Return the same where sentinels (HOST:PORT), with a password of their own, know which server is the primary."""
    options = f"?ssl_ca_certs={ca_file}" if ca_file else ""

    def url(name: str, password: str, database: int) -> str:
        login = f"sentinel://{name}:{quote(password, safe='')}@"
        return ";".join(f"{login}{sentinel}/{database}{options}" for sentinel in sentinels)

    databases = {"REDIS_URL": 0, "CELERY_BROKER_URL": 0, "CELERY_RESULT_BACKEND": 1}
    return {
        name: {variable: url(name, password, number) for variable, number in databases.items()}
        | dict.fromkeys(("SENTINEL_PASSWORD", "DURABLE_SENTINEL_PASSWORD"), own_password)
        for name, password in passwords.items()
    }


def _unique(words: Any) -> list[str]:
    return list(dict.fromkeys(words))


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about them."""
        return {
            "redis_primary": redis_primary,
            "redis_urls": redis_urls,
            "redis_users": redis_users,
            "sentinel_address": sentinel_address,
            "sentinel_urls": sentinel_urls,
        }
