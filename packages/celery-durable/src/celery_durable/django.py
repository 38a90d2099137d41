"""Django's database connections of coroutines.

Its asynchronous interface keeps them in a thread of its own. Celery's fixup closes those of the thread that traces a
task, so that a connection that its server has ended would fail all tasks to come.
"""

import os
import sys
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


def is_used() -> bool:
    """Return whether Celery's fixup has set Django up in this process."""
    return "DJANGO_SETTINGS_MODULE" in os.environ and "django.db" in sys.modules


async def closing_connections(coroutine: Awaitable[T]) -> T:
    """Run a task's coroutine; at its end close what Django closes at the end of a request."""
    try:
        return await coroutine
    finally:
        # Not imported: only an application of Django's has them.
        await sys.modules["asgiref.sync"].sync_to_async(sys.modules["django.db"].close_old_connections)()
