"""Filters about the application that is deployed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

# The sample, which is deployed where the inventory names no other source.
REPOSITORY = Path(__file__).parent.parent.parent
# What Celery, the library and Flower read, whatever the application is.
ALWAYS = re.compile(r"(CELERY|DURABLE|FLOWER)_[A-Z_]+")
SERVICES = ("all", "worker", "api")


@lru_cache
def described(source: str) -> dict[str, Any]:
    """Return the variables that an application's source describes itself with, in app/platform.yml; mostly none."""
    file = Path(source or REPOSITORY, "app/platform.yml")
    return yaml.safe_load(file.read_text()) if file.is_file() else {}


def variables_read(offered: Mapping[str, Any], names: Iterable[str], *, results: bool = True) -> dict[str, Any]:
    """Return of the platform's variables those that this application gets: Celery's, the library's, and ``names``.

    Args:
        offered: all of them.
        names: what the application reads besides.
        results: whether its results are in Redis.
    """
    wanted = set(names)
    hidden = set() if results else {"CELERY_RESULT_BACKEND"}
    return {
        name: value
        for name, value in offered.items()
        if name not in hidden and (ALWAYS.fullmatch(name) or name in wanted)
    }


def redis_variables(urls: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the application's own variables with a URL of Redis.

    Args:
        urls: those of the user, by the platform's names.
        wanted: variable -> broker or results.
    """
    parts = {"broker": "CELERY_BROKER_URL", "results": "REDIS_URL"}
    return {name: urls[parts[part]] for name, part in wanted.items()}


def application_refusals(values: Mapping[str, Any]) -> list[str]:
    """Say in one sentence each what is wrong with the description of an application, by its variables."""
    return [*_refusals(values)]


def _refusals(values: Mapping[str, Any]) -> Iterator[str]:
    servers = [name for name in ("app_asgi", "app_wsgi", "app_command") if values[name]]
    if not values["app_celery"]:
        yield "app_celery is empty: name what `celery -A` gets, like proj.celery_app."
    if len(servers) > 1:
        yield f"{' and '.join(servers)} are given, but a host runs one web application: leave one of them."
    if values["app_command"] and not any("{fd}" in str(word) for word in values["app_command"]):
        yield "app_command has no {fd}: the server must take its socket from systemd, like gunicorn's --bind=fd://{fd}."
    for name, value in values["app_settings"].items():
        yield from _name_refusals("app_settings", name)
        if isinstance(value, str) and re.search(r"[\r\n']", value):
            yield f"app_settings.{name} holds a line break or a single quote, which a settings file cannot carry."
    for service, secrets in values["app_secrets"].items():
        if service not in SERVICES:
            yield f"app_secrets has '{service}', but it must be made of {', '.join(SERVICES)}."
            continue
        for name, value in secrets.items():
            yield from _name_refusals(f"app_secrets.{service}", name)
            if not isinstance(value, str) or not value:
                yield f"app_secrets.{service}.{name} must be a text in quotes (its value is not shown)."
    for name, part in values["app_redis_variables"].items():
        yield from _name_refusals("app_redis_variables", name)
        if part not in ("broker", "results"):
            yield f"app_redis_variables.{name} is '{part}', but it must be broker or results."
    for prefix in values["app_redis_prefixes"]:
        if not re.fullmatch(r"[A-Za-z0-9_.:/-]+\*?", str(prefix)):
            yield f"app_redis_prefixes has '{prefix}', but it must be like shop:*, letters, digits and . _ : / - before the star."
        elif re.match(r"celery|unacked|deferred:|accepted|dead_letters|_kombu|figures|workers|alerts|failures", str(prefix)):
            yield f"app_redis_prefixes has '{prefix}', but keys of that name are Celery's or the platform's: choose another one."
    for name, target in values["app_release_shared"].items():
        for path in (name, target):
            if not re.fullmatch(r"[A-Za-z0-9_@+-][A-Za-z0-9._@+-]*(/[A-Za-z0-9_@+-][A-Za-z0-9._@+-]*)*", str(path)):
                yield f"app_release_shared has '{path}', but it must be a path below the release and a directory's name, like uploads: uploads."


def _name_refusals(variable: str, name: Any) -> Iterator[str]:
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", str(name)):
        yield f"{variable} has '{name}', but a variable's name is made of upper-case letters, digits and underscores."
    elif re.match(r"DURABLE_|LD_|PYTHON", str(name)) or name in ("PATH", "SECRETS_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        yield f"{variable} has {name}, which is the platform's own: take it out."


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about them."""
        return {
            "application_refusals": application_refusals,
            "described": described,
            "redis_variables": redis_variables,
            "variables_read": variables_read,
        }
