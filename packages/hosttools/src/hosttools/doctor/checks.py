"""Checks that hide nothing of one another: what fails or hangs in one is itself a finding."""

import functools
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hosttools.findings import HOST, WARNING, Finding
from hosttools.masking import quote
from hosttools.redis_client import RedisError

Check = Callable[..., Iterable["Finding"]]


def apart(check: Check) -> Check:
    """Keep what goes wrong inside one check from hiding the others; what a connection says is for the caller."""

    @functools.wraps(check)
    def run(*given: Any, **named: Any) -> Iterator[Finding]:
        try:
            yield from check(*given, **named)
        except (RedisError, ConnectionError, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            yield blind(check.__name__, error)

    return run


def blind(check: str, error: Exception) -> Finding:
    """Return that something could not be looked at."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{check}, line {frame.lineno} of {frame.filename}"
    what = f"the doctor could not look: {type(error).__name__}: {quote(str(error))} ({place})"
    return Finding(WARNING, what, "")


def careful(check: Check, found: list[Finding] | None = None) -> list[Finding]:
    """Run one check; what goes wrong in it must not hide what it and the others find."""
    found = [] if found is None else found
    try:
        for finding in check():
            found.append(finding)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        found.append(blind(getattr(check, "__name__", "check"), error))
    return found


def within(seconds: float, checks: dict[str, Check]) -> list[Finding]:
    """Run all checks at once; what is not seen within so many seconds is told, and not waited for."""
    found: dict[str, list[Finding]] = {name: [] for name in checks}
    until = time.monotonic() + seconds
    threads = {
        name: threading.Thread(target=careful, args=(check, found[name]), daemon=True) for name, check in checks.items()
    }
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0, until - time.monotonic()))
        if thread.is_alive():
            what = f"the doctor could not look at everything within {seconds:g} s: {name} takes longer"
            found[name].append(Finding(WARNING, what, "", HOST))
    return [finding for part in found.values() for finding in list(part)]
