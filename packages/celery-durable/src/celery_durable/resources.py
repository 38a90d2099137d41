"""What tasks of a process share: one HTTP client or one database pool for each event loop, and not for each run."""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds that they have together to close when their process ends.
CLOSE_TIMEOUT = 3.0

_keepers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, "_Kept"]] = WeakKeyDictionary()


class _Kept:
    """An open context manager. It is entered and left by one asyncio task, as libraries want it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, opened: AbstractAsyncContextManager[object]) -> None:
        self.value: asyncio.Future[Any] = loop.create_future()
        self._leave = asyncio.Event()
        # It belongs to no run.
        self.task = loop.create_task(self._keep(opened), context=contextvars.Context())

    async def _keep(self, opened: AbstractAsyncContextManager[object]) -> None:
        try:
            async with opened as value:
                self.value.set_result(value)
                await self._leave.wait()
        except Exception as error:
            if self.value.done():
                logger.exception("What tasks share could not be closed")
            else:
                self.value.set_exception(error)

    async def close(self) -> None:
        self._leave.set()
        await asyncio.wait([self.task])


def per_process(open_: Callable[[], AbstractAsyncContextManager[T]]) -> Callable[[], Awaitable[T]]:
    """Return an async function that returns what ``open_`` opens: at the first call on a loop, and then the same.

    It is closed when the process ends. One that fails to open is tried again at the next call::

        @per_process
        @asynccontextmanager
        async def http():
            async with AsyncClient() as client:
                yield client

        @app.task
        async def fetch(url):
            client = await http()
    """

    @wraps(open_)
    async def shared() -> T:
        loop = asyncio.get_running_loop()
        kept = _keepers.setdefault(loop, {})
        if shared not in kept:
            kept[shared] = _Kept(loop, open_())
        keeper = kept[shared]
        try:
            # A run that is cancelled meanwhile leaves it to the others.
            value: T = await asyncio.shield(keeper.value)
            return value
        except asyncio.CancelledError:
            raise
        except Exception:
            if kept.get(shared) is keeper:
                del kept[shared]
            raise

    return shared


async def close() -> None:
    """Close what is open on the running loop, the newest first."""
    kept = _keepers.pop(asyncio.get_running_loop(), {})
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            for keeper in reversed(kept.values()):
                await keeper.close()
    except TimeoutError:
        logger.warning("What tasks share was not closed within %.0f s", CLOSE_TIMEOUT)
