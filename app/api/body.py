"""Reading and checking the body of an enqueue request before anything is made of it."""

import asyncio
import math
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.api.models import BatchRequest, EnqueueRequest

Model = TypeVar("Model", bound=BaseModel)

# Levels of objects and arrays inside "data". Celery and its JSON decoder recurse, Python stops at 1000.
MAX_DEPTH = 64
INT64 = range(-(2**63), 2**63)
# kombu turns an object with exactly these keys into a Python value, or drops the message when it cannot.
RESERVED_KEYS = {"__type__", "__value__"}
# Seconds in which the whole body must have arrived.
READ_BUDGET = 10
# Characters of a client's own key that an error message repeats.
MAX_SHOWN_PATH = 200


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


async def read_json(request: Request, limit: int, model: type[Model]) -> Model:
    """Read at most ``limit`` bytes of body and check them.

    Raises:
        HTTPException: 408, 413, 415 or 422, each with a sentence.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "The Content-Type must be application/json.")
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise HTTPException(
            415, "The body must be sent as it is, without a Content-Encoding.", headers={"Accept-Encoding": "identity"}
        )
    body = await _read(request, limit)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(["body", *map(str, problem["loc"])])[:MAX_SHOWN_PATH]
        raise HTTPException(422, f"{where}: {rule_of(problem)}.") from None


def rule_of(problem: Any) -> str:
    """Return the rule that pydantic found broken."""
    return str(problem["ctx"]["error"]) if problem["type"] == "value_error" else str(problem["msg"])


async def _read(request: Request, limit: int) -> bytes:
    too_large = HTTPException(413, f"The body is larger than {limit} bytes.")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(READ_BUDGET):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except ClientDisconnect:
        raise HTTPException(400, "The client went away before the whole body was here.") from None
    except TimeoutError:
        # Whatever may still come is not waited for.
        detail = f"The body did not arrive within {READ_BUDGET} s."
        raise HTTPException(408, detail, headers={"Connection": "close"}) from None
    return bytes(body)


def _find_problem(data: dict[str, Any], at: str = "data") -> str | None:
    """Return what the queue cannot carry and where it is; without recursion, ``data`` may be deep."""
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
