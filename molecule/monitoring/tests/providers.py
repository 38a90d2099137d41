"""The providers that the example task pretends to call, as a drill wants them; imported by the worker at its start.

``/var/lib/drill/fail``: calls of tasks that ask for it fail. ``/var/lib/drill/slow``: each call takes as many seconds
as the file says. ``/var/lib/drill/kill``: each call kills the process. ``/var/lib/drill/grow``: each call keeps as
many MiB as the file says, instead of what the last one has kept. ``/var/lib/drill/block``: what a coroutine awaits
blocks its event loop instead.
"""

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

WORLD = Path("/var/lib/drill")
_kept: list[bytes] = []
_random, _sleep, _wait = random.random, time.sleep, asyncio.sleep
BLOCKED_SECONDS = 1.5


def _chance() -> float:
    return 0.0 if (WORLD / "fail").exists() else _random()


def _call(seconds: float) -> None:
    from celery import current_task  # noqa: PLC0415 - not before the worker has set itself up

    if current_task and (WORLD / "kill").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if current_task and (WORLD / "grow").exists():
        _kept[:] = [b"x" * (int((WORLD / "grow").read_text()) << 20)]
    slow = WORLD / "slow"
    _sleep(float(slow.read_text()) if current_task and slow.exists() else seconds)


async def _await(seconds: float) -> None:
    if (WORLD / "block").exists():
        _sleep(BLOCKED_SECONDS)
        seconds = 0
    await _wait(seconds)


# Other Python programs of the unit import nothing more.
if "worker" in sys.argv and Path(sys.argv[0]).name == "celery":
    random.random, time.sleep = _chance, _call  # type: ignore[assignment]  # the example passes a float
    asyncio.sleep = _await  # type: ignore[assignment]  # no task wants a result of it
