"""What the library needs to know, beyond what Celery's own configuration says."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from celery_durable.address import RedisAddress
from celery_durable.queue_names import DEFAULT_QUEUE

# Bytes of the largest queue entry that a worker takes, unless it is said: 2 MiB of content and Celery's headers.
MESSAGE_LIMIT = (2 * 1024 + 64) * 1024
# Characters; 64 hexadecimal ones hold the 256 bits that HMAC-SHA256 can use.
SHORTEST_KEY = 32


@dataclass(frozen=True, kw_only=True)
class Options:
    """Given to ``celery_durable.install``; durations are seconds. URLs are secrets because they carry passwords."""

    # Empty: those of the application.
    broker_url: str = field(default="", repr=False)
    result_url: str = field(default="", repr=False)
    # Where a URL above names sentinels: what they call the primary, and the password that they ask for themselves.
    broker_primary: str = "broker"
    results_primary: str = "main"
    sentinel_password: str | None = field(default=None, repr=False)
    # Of task messages and of commands to workers. Two while one replaces the other: the first signs, both verify.
    signing_keys: tuple[bytes, ...] = field(default=(), repr=False)
    control_keys: tuple[bytes, ...] = field(default=(), repr=False)
    message_limit: int = MESSAGE_LIMIT
    # Every queue that somebody may send tasks to or take them from.
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    # How long ``.delay()`` takes while Redis is away or hangs: of a worker as long as Celery tries, some 16 s; in a web
    # process 1 s at most.
    client_profile: Literal["worker", "web"] = "worker"
    # What is hidden wherever it would show up in logs and results: each value, and the password of a URL.
    secrets: tuple[str, ...] = field(default=(), repr=False)
    json_logs: bool = False
    log_level: str | None = None  # of workers that are started without --loglevel
    watchdog_seconds: int | None = None  # None: no watchdog, or systemd's
    heartbeat_file: Path | None = None  # touched while the worker lives, for celery_durable.probe
    beat: str = ""  # beats of this name on several hosts share a lease; empty: there is one alone
    workers_expected: int = 0  # of all hosts and pools, to compare with those that are there

    # For ``celery_durable.aio``
    # Replicas that must have a task before it counts as accepted, and what becomes of one that they lack after a while.
    replicas_wanted: int = 0
    unreplicated: Literal["refuse", "mark"] = "refuse"
    queue_max_length: int = 10_000  # messages that may wait in a queue
    broker_max_memory_share: float = 0.8  # of the broker's maxmemory
    reject_without_workers_seconds: int = 900  # without a report of any worker; 0: never

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the variables ``DURABLE_*``; an empty one counts as absent.

        Raises:
            OptionError: a value is wrong; the message is one sentence that holds no secret.
        """
        given = read(VARIABLES, environ)
        masked = [environ.get(name, "") for name in environ.get("DURABLE_MASKED", "").replace(",", " ").split()]
        keys = [key.decode() for option in ("signing_keys", "control_keys") for key in given.get(option, ())]
        return cls(**given, secrets=tuple(filter(None, [*masked, *keys])))

    @property
    def broker_database(self) -> int:
        """Number of the Redis database that holds the queues."""
        return RedisAddress.parse(self.broker_url).database


class OptionError(ValueError):
    """A variable has a wrong value."""


# Variable -> option, how it is read, and the rule of its value.
Variables = Mapping[str, tuple[str, Callable[[str], Any], str]]


def read(variables: Variables, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the options that are set; an empty variable counts as absent.

    Raises:
        OptionError: a value is wrong; the message is one sentence that holds no secret.
    """
    given: dict[str, Any] = {}
    for variable, (option, parse, rule) in variables.items():
        if value := environ.get(variable, "").strip():
            try:
                given[option] = parse(value)
            except (ValueError, KeyError):
                shown = "" if option in SECRET else f"={value!r}"
                raise OptionError(f"{variable}{shown} is rejected: it must be {rule}.") from None
    return given


def _keys(value: str) -> tuple[bytes, ...]:
    keys = tuple(key.encode() for key in value.replace(",", " ").split())
    if not 1 <= len(keys) <= 2 or any(len(key) < SHORTEST_KEY for key in keys):
        raise ValueError
    return keys


def number(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not below ``least``."""

    def parse(value: str) -> int:
        if (whole := int(value)) < least:
            raise ValueError
        return whole

    return parse


def _share(value: str) -> float:
    share = float(value)
    if not 0 < share <= 1:
        raise ValueError
    return share


def _queues(value: str) -> tuple[str, ...]:
    return tuple(value.replace(",", " ").split())


def _name(value: str) -> str:
    if not re.fullmatch(r"[\w-]+", value, re.ASCII):
        raise ValueError
    return value


def _one_of(*choices: str) -> Callable[[str], str]:
    return {choice: choice for choice in choices}.__getitem__


_KEY_RULE = f"one key of at least {SHORTEST_KEY} characters, or a new and an old one separated by a comma"
VARIABLES: Variables = {
    "DURABLE_BROKER_PRIMARY": ("broker_primary", str, "a name"),
    "DURABLE_RESULTS_PRIMARY": ("results_primary", str, "a name"),
    "DURABLE_SENTINEL_PASSWORD": ("sentinel_password", str, "a password"),
    "DURABLE_SIGNING_KEY": ("signing_keys", _keys, _KEY_RULE),
    "DURABLE_CONTROL_KEY": ("control_keys", _keys, _KEY_RULE),
    "DURABLE_MESSAGE_LIMIT": ("message_limit", number(1024), "bytes, at least 1024"),
    "DURABLE_QUEUES": ("queues", _queues, "names of queues, separated by commas"),
    "DURABLE_CLIENT": ("client_profile", _one_of("worker", "web"), "worker or web"),
    "DURABLE_LOGS": ("json_logs", {"json": True, "plain": False}.__getitem__, "json or plain"),
    "DURABLE_LOG_LEVEL": ("log_level", str, "a level"),
    "DURABLE_BEAT": ("beat", _name, "a word of letters, digits, hyphens and underscores"),
    "DURABLE_WATCHDOG_SECONDS": ("watchdog_seconds", number(10), "seconds, at least 10"),
    "DURABLE_HEARTBEAT_FILE": ("heartbeat_file", Path, "a path"),
    "DURABLE_WORKERS_EXPECTED": ("workers_expected", number(0), "a number, at least 0"),
    "DURABLE_REPLICAS_WANTED": ("replicas_wanted", number(0), "a number, at least 0"),
    "DURABLE_UNREPLICATED": ("unreplicated", _one_of("refuse", "mark"), "refuse or mark"),
    "DURABLE_QUEUE_LIMIT": ("queue_max_length", number(1), "a number of messages, at least 1"),
    "DURABLE_MEMORY_SHARE": ("broker_max_memory_share", _share, "above 0 and at most 1"),
    "DURABLE_REJECT_WITHOUT_WORKERS": ("reject_without_workers_seconds", number(0), "seconds, 0 for never"),
}
# Options whose values no message shows.
SECRET = {"sentinel_password", "signing_keys", "control_keys", "basic_auth"}


def options_of(app: Any) -> Options:
    """Return the options of an application, whose configuration is loaded for that."""
    if not app.configured:
        _ = app.conf.worker_consumer  # not a URL, which Celery looks for in the environment first
    options: Options = app.durable_options
    return options
