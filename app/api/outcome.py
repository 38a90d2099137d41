"""A task's outcome, from Celery's stored result."""

import asyncio
import json
from contextlib import suppress
from typing import Any, NamedTuple

from celery.states import EXCEPTION_STATES, READY_STATES, SUCCESS

from celery_durable.masking import mask
from celery_durable.stored_results import LARGEST, UNKNOWN, parse

# Characters of an error's line.
LONGEST_ERROR = 2000


class Outcome(NamedTuple):
    """The response of a status request about one task."""

    code: int
    content: str  # JSON, in ASCII: a text may hold a half of a surrogate pair, for which UTF-8 has no bytes
    state: str | None = None  # unless nothing is known of the task

    @property
    def is_final(self) -> bool:
        """Return whether it stays like this."""
        return self.state is None or self.state == UNKNOWN or self.state in READY_STATES


def known(task_id: str, state: str, result: Any = None, error: str | None = None, meta: Any = None) -> Outcome:
    """Return the form that each status has."""
    content = {"task_id": task_id, "status": state, "result": result, "error": error, "meta": meta}
    return Outcome(200, json.dumps(content), state)


def unknown(code: int, detail: str) -> Outcome:
    """Return the form of an error."""
    return Outcome(code, json.dumps({"detail": detail}))


async def describe(task_id: str, stored: bytes) -> Outcome:
    """Return a task's outcome from Celery's stored result."""
    try:
        return _outcome(task_id, stored)
    except RecursionError:
        # A thread's own stack has as much room as the worker's had.
        with suppress(RecursionError):
            return await asyncio.to_thread(_outcome, task_id, stored)
        return known(task_id, UNKNOWN, error="Its result is nested too deep to be shown.")
    except ValueError:
        reason = f"is not Celery's, or is compressed and not by gzip, bzip2 or lzma from {LARGEST // 2**20} MiB at most"
        return known(task_id, UNKNOWN, error=f"What is stored in the place of its result {reason}.")


def _outcome(task_id: str, stored: bytes) -> Outcome:
    meta = parse(stored)
    state, value = meta["status"], meta.get("result")
    if not isinstance(state, str):
        state = json.dumps(state)
    if state == SUCCESS:
        return known(task_id, state, result=value)
    error = _one_line(value) if state in EXCEPTION_STATES else None
    # Clients get neither the process nor more of an error than its line.
    told = _is_error(value) if error else isinstance(value, dict) and value.keys() == {"pid", "hostname"}
    return known(task_id, state, error=error, meta=None if told else value)


def _is_error(value: Any) -> bool:
    """Return whether a value is an exception as Celery stores it: type, arguments, module."""
    return isinstance(value, dict) and isinstance(value.get("exc_type"), str)


def _one_line(value: Any) -> str:
    """Describe an exception, or a task's own value in its place; the text may hold a password or key."""
    prefix, message = "", value
    if _is_error(value):
        prefix, message = value["exc_type"], value.get("exc_message")
        if isinstance(message, list):
            message = " ".join(map(str, message))
    if not isinstance(message, str):
        message = json.dumps(message) if message else ""
    first_line = message.strip().partition("\n")[0][:LONGEST_ERROR]
    return mask(": ".join(filter(None, (prefix, first_line))) or "The task gave no reason.")
