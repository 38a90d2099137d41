"""Reading and checking the body of an enqueue request before anything is made of it."""

import math
from typing import Any

from fastapi import HTTPException, Request

from app.api.models import BatchRequest, EnqueueRequest
from durable_console.web.body import MAX_SHOWN_PATH, read_json

# Levels of objects and arrays inside "data". Celery and its JSON decoder recurse, Python stops at 1000.
MAX_DEPTH = 64
INT64 = range(-(2**63), 2**63)
# kombu turns an object with exactly these keys into a Python value, or drops the message when it cannot.
RESERVED_KEYS = {"__type__", "__value__"}


async def read_enqueue_request(request: Request, limit: int) -> EnqueueRequest:
    """Read at most ``limit`` bytes of body and check that the queue can carry them.

    Raises:
        HTTPException: 408, 413, 415 or 422, each with a sentence.
    """
    parsed = await read_json(request, limit, EnqueueRequest)
    if problem := _find_problem(parsed.data):
        raise HTTPException(422, f"{problem}.")
    return parsed


async def read_batch_request(request: Request, limit: int) -> BatchRequest:
    """Do the same for several tasks; the sentence names the task by its number, from 0.

    Raises:
        HTTPException: 408, 413, 415 or 422, each with a sentence.
    """
    parsed = await read_json(request, limit, BatchRequest)
    keys: dict[str, int] = {}
    for number, entry in enumerate(parsed.tasks):
        if problem := _find_problem(entry.data, f"tasks.{number}.data"):
            raise HTTPException(422, f"{problem}.")
        if (key := entry.idempotency_key) is not None and keys.setdefault(key, number) != number:
            raise HTTPException(422, f"tasks.{number}.idempotency_key: tasks.{keys[key]} has the same.")
    return parsed


def _find_problem(data: dict[str, Any], at: str = "data") -> str | None:
    """Return the value that the queue cannot carry and its place; without recursion, ``data`` may be deep."""
    waiting: list[tuple[str, int, Any]] = [(at, 1, data)]
    while waiting:
        path, depth, value = waiting.pop()
        problem = _problem_of(value, depth)
        if problem:
            return f"{path[:MAX_SHOWN_PATH]}: {problem}"
        if isinstance(value, dict):
            waiting += [(f"{path}.{key}", depth + 1, item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}.{index}", depth + 1, item) for index, item in enumerate(value)]
    return None


def _problem_of(value: Any, depth: int) -> str | None:
    if isinstance(value, dict | list) and depth > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, dict) and value.keys() == RESERVED_KEYS:
        return "an object with just the keys __type__ and __value__ is reserved by the task queue"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN and infinite numbers are not JSON"
    if isinstance(value, int) and value not in INT64:
        return "the integer does not fit into 64 bits"
    return None
