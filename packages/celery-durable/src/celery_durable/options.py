"""What the library needs to know, beyond what Celery's own configuration says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from celery_durable.address import RedisAddress
from celery_durable.queue_names import DEFAULT_QUEUE

# Bytes of the largest queue entry that a worker takes, unless it is said: 2 MiB of content and Celery's headers.
MESSAGE_LIMIT = (2 * 1024 + 64) * 1024


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
    workers_expected: int = 0  # of all hosts and pools, to compare with those that are there

    # For ``celery_durable.aio``
    # Replicas that must have a task before it counts as accepted, and what becomes of one that they lack after a while.
    replicas_wanted: int = 0
    unreplicated: Literal["refuse", "mark"] = "refuse"
    queue_max_length: int = 10_000  # messages that may wait in a queue
    broker_max_memory_share: float = 0.8  # of the broker's maxmemory
    reject_without_workers_seconds: int = 900  # without a report of any worker; 0: never

    @property
    def broker_database(self) -> int:
        """Number of the Redis database that holds the queues."""
        return RedisAddress.parse(self.broker_url).database


_current = Options()


def set_current(options: Options) -> None:
    """Make ``options`` those of this process; kombu's transport has no other way to learn them."""
    global _current  # noqa: PLW0603 - of the process
    _current = options


def current() -> Options:
    """Return this process's options; the defaults before the library is installed."""
    return _current
