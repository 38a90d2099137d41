"""Enqueueing a task and asking what became of it."""

import asyncio
import re
import time
from typing import Annotated, Any

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Header, HTTPException, Request
from pydantic import AfterValidator, WithJsonSchema
from starlette.datastructures import State

from app.agents.broker import ACCEPTED
from app.agents.publisher import Publisher
from app.agents.task_ids import created
from app.agents.tasks.example_task import example_agent_task
from app.agents.worker import celery_app
from app.api.body import read_enqueue_request
from app.api.errors import documented, unavailable
from app.api.models import EnqueueRequest, EnqueueResponse, TaskStatus
from app.api.security import ProtectedRoute
from app.masking import mask
from app.settings import get_settings

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=ProtectedRoute, responses=documented(401, 429))

# Seconds that clocks of different hosts may differ, and a result may be late, before an id counts as expired.
EXPIRY_ALLOWANCE = 5
# Seconds for all questions to Redis that a status needs; the promise to clients is one second.
STATUS_BUDGET = 0.8
VISIBLE_ASCII = r"^[!-~]{1,255}$"
IDEMPOTENCY_HELP = (
    "1 to 255 visible ASCII characters that name this task. A repeated request with the same key and data gets the "
    "same task id and enqueues nothing, as long as results are kept. The same key with other data is refused with 422."
)
UUID7 = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"
# Tells programs that read /openapi.json where the answer's task id goes.
STATUS_LINK = {"status": {"operationId": "status", "parameters": {"task_id": "$response.body#/task_id"}}}


def _visible(key: str | None) -> str | None:
    if key is not None and not re.fullmatch(VISIBLE_ASCII, key):
        raise ValueError("must be 1 to 255 visible ASCII characters without spaces")
    return key


def _canonical(task_id: str) -> str:
    if not re.fullmatch(UUID7, task_id):
        raise ValueError("must be a UUID of version 7, as the enqueue request returned it")
    return task_id.lower()


# The patterns are not pydantic's to check, whose sentence would show the pattern.
IdempotencyKey = Annotated[
    str | None,
    AfterValidator(_visible),
    WithJsonSchema({"type": "string", "pattern": VISIBLE_ASCII}),
    Header(description=IDEMPOTENCY_HELP),
]
TaskId = Annotated[
    str, AfterValidator(_canonical), WithJsonSchema({"type": "string", "format": "uuid", "pattern": UUID7})
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
    body = await read_enqueue_request(request, get_settings().max_body_bytes)
    publisher: Publisher = request.app.state.publisher
    published = await publisher.publish(example_agent_task, body.data, correlation_id.get(), idempotency_key)
    return EnqueueResponse(task_id=published.task_id, replicated=None if published.replicated else False)


@router.get("/status/{task_id}", operation_id="status", responses=documented(404, 410, 422, 503))
async def status(task_id: TaskId, request: Request) -> TaskStatus:
    """Tell what is known about a task: 404 when nothing is, 410 when its result must have expired."""
    try:
        async with asyncio.timeout(STATUS_BUDGET):
            return await _look_up(task_id, request.app.state)
    except TimeoutError:
        raise unavailable("Redis does not answer in time; try again later.") from None


async def _look_up(task_id: str, state: State) -> TaskStatus:
    results, publisher = state.results, state.publisher
    key = f"celery-task-meta-{task_id}"
    stored = await results.get(key)
    if stored is None:
        if await state.broker.hexists(ACCEPTED, task_id) or publisher.remembers(task_id):
            return TaskStatus(task_id=task_id, status="PENDING", result=None, error=None, meta=None)
        # The worker stores the result before it acknowledges: it may have done both between the two questions.
        stored = await results.get(key)
    if stored is not None:
        return _describe(task_id, celery_app.backend.decode(stored))
    kept = get_settings().result_expires
    age = time.time() - (created(task_id) or 0.0)  # the pattern lets nothing else through
    if age > kept + EXPIRY_ALLOWANCE:
        detail = (
            f"No result is stored any more: the task was enqueued {age:.0f} s ago and results expire after {kept} s."
        )
        raise HTTPException(410, detail)
    raise HTTPException(404, "No such task: it was never accepted here, or its result was dropped to make room.")


def _describe(task_id: str, stored: dict[str, Any]) -> TaskStatus:
    state, value = stored["status"], stored["result"]
    return TaskStatus(
        task_id=task_id,
        status=state,
        result=value if state == "SUCCESS" else None,
        error=_one_line(value) if state in {"FAILURE", "RETRY", "REVOKED"} else None,
        meta=value if state == "PROGRESS" else None,
    )


def _one_line(error: dict[str, Any]) -> str:
    """Describe an exception as Celery stores it: type, arguments, module; its text may hold a password or key."""
    arguments = error.get("exc_message") or []
    message = arguments if isinstance(arguments, str) else " ".join(map(str, arguments))
    first_line = message.strip().partition("\n")[0]
    return mask(f"{error['exc_type']}: {first_line}" if first_line else str(error["exc_type"]))
