"""A process is forked between two log lines, not within one.

A copy of a process has the locks of its threads, but not the threads. Where one of them was writing to a stream, the
copy would wait for ever at its own first line: Python renews the locks of logging's handlers, and not those of the
streams below them (python/cpython#50970). A worker's main process has threads, and forks whenever a child is replaced.
"""

import logging
import os
from collections.abc import Iterator

# Seconds to wait for a handler that writes; one that takes longer hangs, and the worker must go on.
TIMEOUT = 1.0
_installed = False
_held: list[logging.Handler] = []


def install() -> None:
    """Let each fork of this process, and of its children, wait for lines that are being written."""
    global _installed  # noqa: PLW0603 - hooks cannot be removed
    if not _installed:
        # What a child has copied of the handlers' locks, logging renews.
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_held.clear)
        _installed = True


def _hold() -> None:
    _held.extend(handler for handler in _handlers() if handler.lock and handler.lock.acquire(timeout=TIMEOUT))


def _release() -> None:
    while _held:
        if lock := _held.pop().lock:
            lock.release()


def _handlers() -> Iterator[logging.Handler]:
    """Yield the handlers of all loggers."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = {id(one): one for logger in loggers if isinstance(logger, logging.Logger) for one in logger.handlers}
    yield from found.values()
