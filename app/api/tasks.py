"""Enqueueing a task and asking what became of it."""

import asyncio
import json
import re
import time
from contextlib import suppress
from typing import Annotated, Any

from asgi_correlation_id import correlation_id
from celery.states import EXCEPTION_STATES, SUCCESS
from fastapi import APIRouter, Header, HTTPException, Request, Response
from prometheus_client import Counter
from pydantic import AfterValidator, WithJsonSchema
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.datastructures import State

from app.agents.tasks.example_task import example_agent_task
from app.api.body import read_enqueue_request
from app.api.errors import documented, unavailable
from app.api.models import EnqueueRequest, EnqueueResponse, TaskStatus
from app.api.security import ProtectedRoute
from app.settings import get_settings
from celery_durable.aio.publisher import Publisher
from celery_durable.entries import expected
from celery_durable.keys import ACCEPTED
from celery_durable.masking import mask
from celery_durable.stored_results import UNKNOWN, parse
from celery_durable.task_ids import created

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=ProtectedRoute, responses=documented(401, 429))

# Seconds that clocks of different hosts may differ, and a result may be late, before an id counts as expired.
EXPIRY_ALLOWANCE = 5
# Seconds for all questions to Redis that a status needs; the promise to clients is one second.
STATUS_BUDGET = 0.8
ENQUEUED = Counter("celery_tasks_enqueued", "Tasks that the API has put into a queue.", ["task"])
VISIBLE_ASCII = r"^[!-~]{1,255}$"
IDEMPOTENCY_HELP = (
    "1 to 255 visible ASCII characters that name this task. A repeated request with the same key and data gets the "
    "same task id and enqueues nothing, as long as results are kept. The same key with other data is refused with 422."
)
# Ids of ours, which clients may write in capitals; Celery takes any text for one.
UUID7 = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"
LONGEST_ID = 255
# Characters of an error's line.
LONGEST_ERROR = 2000
# Tells programs that read /openapi.json where the answer's task id goes.
STATUS_LINK = {"status": {"operationId": "status", "parameters": {"task_id": "$response.body#/task_id"}}}


def _visible(key: str | None) -> str | None:
    if key is not None and not re.fullmatch(VISIBLE_ASCII, key):
        raise ValueError("must be 1 to 255 visible ASCII characters without spaces")
    return key


def _canonical(task_id: str) -> str:
    if not 1 <= len(task_id) <= LONGEST_ID:
        raise ValueError(f"must have 1 to {LONGEST_ID} characters")
    return task_id.lower() if re.fullmatch(UUID7, task_id) else task_id


# The patterns are not pydantic's to check, whose sentence would show the pattern.
IdempotencyKey = Annotated[
    str | None,
    AfterValidator(_visible),
    WithJsonSchema({"type": "string", "pattern": VISIBLE_ASCII}),
    Header(description=IDEMPOTENCY_HELP),
]
TaskId = Annotated[
    str, AfterValidator(_canonical), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": LONGEST_ID})
]


@router.post(
    "/enqueue",
    status_code=202,
    response_model_exclude_none=True,
    responses={202: {"links": STATUS_LINK}, **documented(408, 413, 415, 422, 503)},
    openapi_extra={
        # The body is read by hand: limited while it streams, parsed once.
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": EnqueueRequest.model_json_schema()}},
        }
    },
)
async def enqueue(request: Request, idempotency_key: IdempotencyKey = None) -> EnqueueResponse:
    """Put a task into the queue; 202 means that it is there."""
    if len(request.headers.getlist("Idempotency-Key")) > 1:
        raise HTTPException(422, "Idempotency-Key: must be sent once.")
    body = await read_enqueue_request(request, get_settings().max_body_bytes)
    publisher: Publisher = request.app.state.publisher
    published = await publisher.publish(example_agent_task, body.data, correlation_id.get(), idempotency_key)
    if published.new:
        ENQUEUED.labels(example_agent_task.name).inc()
    return EnqueueResponse(task_id=published.task_id, replicated=None if published.replicated else False)


class _AnyText(PathConvertor):
    """An id may hold slashes, and even ends of lines."""

    regex = "(?s:.*)"


register_url_convertor("any_text", _AnyText())


@router.get(
    "/status/{task_id:any_text}",
    operation_id="status",
    response_model=TaskStatus,
    responses=documented(404, 410, 422, 503),
)
async def status(task_id: TaskId, request: Request) -> Response:
    """Tell what is known about a task: 404 when nothing is, 410 when its result must have expired."""
    try:
        async with asyncio.timeout(STATUS_BUDGET):
            return await _look_up(task_id, request.app.state)
    except TimeoutError:
        raise unavailable("Redis does not answer in time; try again later.") from None


async def _look_up(task_id: str, state: State) -> Response:
    results, publisher = state.results, state.publisher
    key = f"celery-task-meta-{task_id}"
    stored = await _stored(results, key)
    if stored is None:
        if await state.broker.hexists(ACCEPTED, task_id) or publisher.remembers(task_id):
            return _answer(task_id, "PENDING")
        # The worker stores the result before it acknowledges: it may have done both between the two questions.
        stored = await _stored(results, key)
    if stored is not None:
        return await _describe(task_id, stored)
    kept = get_settings().result_expires
    since = created(task_id)
    if since is None:
        detail = "No such task: it was never accepted here, or its result has expired or was dropped to make room."
        raise HTTPException(404, detail)
    age = time.time() - since
    if age > kept + EXPIRY_ALLOWANCE:
        detail = (
            f"No result is stored any more: the task was enqueued {age:.0f} s ago and results expire after {kept} s."
        )
        raise HTTPException(410, detail)
    raise HTTPException(404, "No such task: it was never accepted here, or its result was dropped to make room.")


async def _stored(results: Redis, key: str) -> Any:
    """Return what is stored of a task, None when nothing is; a key of another type holds nothing of Celery's."""
    try:
        return await results.get(key)
    except ResponseError as error:
        return expected(error, b"")[0]


async def _describe(task_id: str, stored: bytes) -> Response:
    try:
        return _outcome(task_id, stored)
    except RecursionError:
        # A thread's own stack has as much room as the worker's had.
        with suppress(RecursionError):
            return await asyncio.to_thread(_outcome, task_id, stored)
        return _answer(task_id, UNKNOWN, error="Its result is nested too deep to be shown.")
    except ValueError:
        return _answer(task_id, UNKNOWN, error="What is stored in the place of its result is not Celery's.")


def _outcome(task_id: str, stored: bytes) -> Response:
    meta = parse(stored)
    state, value = meta["status"], meta.get("result")
    if not isinstance(state, str):
        state = json.dumps(state)
    if state == SUCCESS:
        return _answer(task_id, state, result=value)
    error = _one_line(value) if state in EXCEPTION_STATES else None
    # Which process runs it is nobody's business, and an error has its line.
    told = _is_error(value) if error else isinstance(value, dict) and value.keys() == {"pid", "hostname"}
    return _answer(task_id, state, error=error, meta=None if told else value)


def _answer(task_id: str, state: str, result: Any = None, error: str | None = None, meta: Any = None) -> Response:
    content = {"task_id": task_id, "status": state, "result": result, "error": error, "meta": meta}
    # In ASCII: a text may hold a half of a surrogate pair, for which UTF-8 has no bytes.
    return Response(json.dumps(content), media_type="application/json")


def _is_error(value: Any) -> bool:
    """Tell whether a value is an exception as Celery stores it: type, arguments, module."""
    return isinstance(value, dict) and isinstance(value.get("exc_type"), str)


def _one_line(value: Any) -> str:
    """Describe an exception, or what a task stored in its place; the text may hold a password or key."""
    prefix, message = "", value
    if _is_error(value):
        prefix, message = value["exc_type"], value.get("exc_message")
        if isinstance(message, list):
            message = " ".join(map(str, message))
    if not isinstance(message, str):
        message = json.dumps(message) if message else ""
    first_line = message.strip().partition("\n")[0][:LONGEST_ERROR]
    return mask(": ".join(filter(None, (prefix, first_line))) or "The task gave no reason.")
