"""Filters about the application that is deployed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

# The sample, which is deployed where the inventory names no other source.
REPOSITORY = Path(__file__).parent.parent.parent
# What Celery, the library and Flower read, whatever the application is.
ALWAYS = re.compile(r"(CELERY|DURABLE|FLOWER)_[A-Z_]+")
SERVICES = ("all", "worker", "api")
# A Redis of app_redis_variables, and a piece of its URL for an application that puts it together itself.
REDIS_VALUE = re.compile(r"(broker|results|data)(?:\.(host|port|user|password))?")
# A part of a path below the release.
PATH = r"[A-Za-z0-9_@+-][A-Za-z0-9._@+-]*"
FOLDER = f"{PATH}(?:/{PATH})*"
# Slots of the largest pool asyncio (roles/celery_worker/tasks/preflight.yml).
MOST_SLOTS = 2000
# Beginnings of what Celery and the platform keep in Redis.
TAKEN_NAMES = ("celery", "_kombu", "unacked", "accepted", "dead_letters", "deferred:", "figures", "workers", "failures")
TAKEN = re.compile("|".join(map(re.escape, TAKEN_NAMES)))


def described(source: str, name: str, otherwise: Any = "") -> Any:
    """Return what an application says of itself as the variable ``name`` in app/platform.yml; mostly nothing."""
    return _description(source).get(name, otherwise)


@lru_cache
def _description(source: str) -> dict[str, Any]:
    file = Path(source or REPOSITORY, "app/platform.yml")
    try:
        found = yaml.safe_load(file.read_text()) if file.is_file() else {}
    except (yaml.YAMLError, ValueError):
        found = {}
    # Ours names the Celery application; somebody else may have a file of the same name.
    return found if isinstance(found, dict) and "app_celery" in found else {}


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


def redis_variables(urls: Mapping[str, str], wanted: Mapping[str, str], data_port: int) -> dict[str, str]:
    """Return the application's own variables with a URL of Redis, or a piece of one.

    Args:
        urls: those of the user, by the platform's names.
        wanted: variable -> broker, results or data, or a piece of its URL, like data.host.
        data_port: of the application's own Redis, which runs beside that of the results.
    """
    found = {name: REDIS_VALUE.fullmatch(str(value)) for name, value in wanted.items()}
    return {name: _redis_value(urls, match[1], match[2], data_port) for name, match in found.items() if match}


def _redis_value(urls: Mapping[str, str], part: str, piece: str | None, data_port: int) -> str:
    text = urls["CELERY_BROKER_URL" if part == "broker" else "REDIS_URL"]
    if part != "data" and piece is None:
        return text
    url = urlsplit(text)
    if part == "data":
        url = url._replace(netloc=re.sub(r":[0-9]+$", f":{data_port}", url.netloc))
    values = {
        None: url.geturl(),
        "host": url.hostname,
        "port": url.port,
        "user": url.username,
        "password": unquote(url.password or ""),
    }
    return str(values[piece])


def application_errors(values: Mapping[str, Any]) -> list[str]:
    """Say in one sentence each what is wrong with the description of an application, by its variables.

    Values of another type than documented are left to ``value_errors``.
    """
    servers = [name for name in ("app_asgi", "app_wsgi", "app_command") if values[name]]
    errors = [] if values["app_celery"] else ["app_celery is empty: name what `celery -A` gets, like proj.celery_app."]
    if len(servers) > 1:
        errors.append(f"{' and '.join(servers)} are set, but a host runs one web application: leave one of them.")
    if values["app_command"] and "{fd}" not in str(values["app_command"]):
        errors.append(
            "app_command has no {fd}: the server must take its socket from systemd, like --fd={fd}, or --bind=fd://{fd}."
        )
    errors += _setting_errors(_mapping(values["app_settings"]))
    errors += _secret_errors(_mapping(values["app_secrets"]))
    errors += _redis_errors(_mapping(values["app_redis_variables"]), values["app_redis_prefixes"])
    return errors


def release_errors(shared: Any, prepare: Any, sandbox: Any) -> list[str]:
    """Say in one sentence each what is wrong with app_release_shared, app_release_prepare and app_release_sandbox."""
    paths = [path for pair in _mapping(shared).items() for path in pair]
    return [
        *(
            f"app_release_shared has {path!r}, but it must map a path in the release to a directory's name, like"
            " uploads: uploads."
            for path in paths
            if not isinstance(path, str) or not re.fullmatch(FOLDER, path)
        ),
        *(
            f"app_release_prepare has {command!r}, but each command is a list of texts, like [venv/bin/alembic,"
            ' upgrade, head]; put a number in quotes, like "660".'
            for command in _list(prepare)
            if not _list(command) or not all(isinstance(word, str) for word in command)
        ),
        *(
            f"app_release_sandbox has {line!r}, but each is a directive of systemd, like MemoryDenyWriteExecute=no."
            for line in _list(sandbox)
            if not re.fullmatch(r"[A-Z][A-Za-z]+=[!-~ ]*", str(line))
        ),
    ]


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _setting_errors(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        # Programs start in the release: so it means the same on hosts, in containers, and for another release.
        if name == "PYTHONPATH":
            if not re.fullmatch(f"{FOLDER}(:{FOLDER})*", str(value)):
                yield f"app_settings.PYTHONPATH is {value!r}, but it names folders of the release, like src or src:lib."
            continue
        yield from _name_errors("app_settings", name)
        if re.search(r"[\r\n']", value if isinstance(value, str) else json.dumps(value, default=str)):
            yield f"app_settings.{name} holds a line break or a single quote, which a settings file cannot carry."


def _secret_errors(secrets: Mapping[str, Any]) -> Iterator[str]:
    for service, variables in secrets.items():
        if service not in SERVICES or not isinstance(variables, Mapping):
            yield f"app_secrets has {service!r}, but it maps {', '.join(SERVICES)} to variables and their values."
            continue
        for name, value in variables.items():
            yield from _name_errors(f"app_secrets.{service}", name)
            if not isinstance(value, str) or not value:
                yield f"app_secrets.{service}.{name} must be a text in quotes, and not empty (its value is not shown)."


def _redis_errors(variables: Mapping[str, Any], prefixes: Any) -> Iterator[str]:
    for name, part in variables.items():
        yield from _name_errors("app_redis_variables", name)
        if not REDIS_VALUE.fullmatch(str(part)):
            yield (
                f"app_redis_variables.{name} is {part!r}, but it must be broker, results or data, or a piece of its"
                " URL: host, port, user or password, like data.host."
            )
    for prefix in _list(prefixes):
        if not re.fullmatch(r"[A-Za-z0-9_.:/-]+\*?", str(prefix)):
            rule = "letters, digits and _ . : / -, with a star at the end or without, like shop:*"
            yield f"app_redis_prefixes has {prefix!r}, but each is made of {rule}."
        elif TAKEN.match(str(prefix)) or any(name.startswith(str(prefix).removesuffix("*")) for name in TAKEN_NAMES):
            yield f"app_redis_prefixes has '{prefix}', but such keys are Celery's or the platform's: take another."


def _name_errors(variable: str, name: Any) -> Iterator[str]:
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", str(name)):
        yield f"{variable} has '{name}', but a variable's name is made of upper-case letters, digits and underscores."
    # PYTHON_VERSION and the like are an image's, and some applications read them.
    elif re.match(r"DURABLE_|LD_|PYTHON(?!_)", str(name)) or name in (
        "PATH",
        "SECRETS_DIRECTORY",
        "CREDENTIALS_DIRECTORY",
    ):
        yield f"{variable} has {name}, which is the platform's own: take it out."


def pool_option(pool: Mapping[str, Any]) -> str:
    """Return what Celery's ``--pool`` says of one of celery_worker_pools; a pool that is not its own is "custom"."""
    kind = str(pool.get("pool", "prefork"))
    return "custom" if kind == "asyncio" else kind


def pool_environment(pool: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that a worker of one of celery_worker_pools has besides those of all workers."""
    if pool.get("pool") != "asyncio":
        return {}
    processes = {"DURABLE_POOL_PROCESSES": str(pool["processes"])} if "processes" in pool else {}
    return {"CELERY_CUSTOM_WORKER_POOL": "celery_durable.worker.asyncio_pool:TaskPool", **processes}


def pool_tasks_max(pool: Mapping[str, Any], concurrency: int) -> int:
    """Return how many processes and threads one of celery_worker_pools may have.

    Args:
        pool: one of them.
        concurrency: celery_worker_concurrency.
    """
    if pool.get("pool") == "asyncio":
        # A thread for each run, also after the pool has grown; asyncio's 32 for each process, and a library's.
        return 512 + 2 * MOST_SLOTS
    # For each task that runs: its process or thread, asyncio's 32 threads at most, and as many of a library.
    return 64 + 64 * int(pool.get("concurrency", concurrency))


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {
            "application_errors": application_errors,
            "described": described,
            "pool_environment": pool_environment,
            "pool_option": pool_option,
            "pool_tasks_max": pool_tasks_max,
            "redis_variables": redis_variables,
            "release_errors": release_errors,
            "variables_read": variables_read,
        }
