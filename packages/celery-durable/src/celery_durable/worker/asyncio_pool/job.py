"""A run as the main process sees it."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_durable.worker.asyncio_pool.member import Member

_numbers = itertools.count(1)

# Why a run is ended from outside.
TIME_LIMIT, TERMINATED = "time limit", "terminated"


@dataclass(eq=False, kw_only=True)
class Job:
    """What Celery hands to a pool, with the callbacks of its request; limits are seconds."""

    target: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    callback: Callable[..., Any]
    accept_callback: Callable[..., Any]
    error_callback: Callable[..., Any]
    timeout_callback: Callable[..., Any]
    soft_limit: float | None
    hard_limit: float | None
    end: Callable[["Job", str], None]
    number: int = field(default_factory=lambda: next(_numbers))
    member: "Member | None" = None
    accepted: float | None = None  # time.monotonic()
    reason: str = ""  # TIME_LIMIT or TERMINATED, once it is being ended
    kill_at: float | None = None  # time.monotonic() from when its process is replaced

    def terminate(self, _signal: int) -> None:
        """Cancel it; the signal says how the process of a prefork pool would have ended."""
        self.end(self, TERMINATED)
