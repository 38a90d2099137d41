"""Enqueueing a task and asking what became of it."""

import re
import time
import uuid
from typing import Annotated, Any

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, HTTPException, Request
from pydantic import AfterValidator
from uuid_utils import compat

from app.agents.publisher import Publisher
from app.agents.tasks.example_task import example_agent_task
from app.agents.worker import celery_app
from app.api.body import read_enqueue_request
from app.api.errors import documented
from app.api.models import EnqueueRequest, EnqueueResponse, TaskStatus
from app.settings import get_settings

router = APIRouter(prefix="/tasks", tags=["tasks"])

# Seconds that clocks of different hosts may differ, and a result may be late, before an id counts as expired.
EXPIRY_ALLOWANCE = 5
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def _canonical(task_id: str) -> str:
    task_id = task_id.lower()
    if not UUID7.fullmatch(task_id):
        raise ValueError("must be a UUID of version 7, as the enqueue request returned it")
    return task_id


@router.post(
    "/enqueue",
    status_code=202,
    responses=documented(413, 415, 422, 503),
    openapi_extra={
        # The body is read by hand: limited while it streams, parsed once.
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": EnqueueRequest.model_json_schema()}},
        }
    },
)
async def enqueue(request: Request) -> EnqueueResponse:
    """Put a task into the queue; 202 means that it is there."""
    body = await read_enqueue_request(request, get_settings().max_body_bytes)
    publisher: Publisher = request.app.state.publisher
    task_id = str(compat.uuid7())
    await publisher.publish(example_agent_task, task_id, (task_id, body.data), correlation_id.get())
    return EnqueueResponse(task_id=task_id)


@router.get("/status/{task_id}", responses=documented(410, 422, 503))
async def status(task_id: Annotated[str, AfterValidator(_canonical)], request: Request) -> TaskStatus:
    """Tell what is known about a task; 410 when its result must have expired."""
    stored = await request.app.state.results.get(f"celery-task-meta-{task_id}")
    if stored is not None:
        return _describe(task_id, celery_app.backend.decode(stored))
    kept = get_settings().result_expires
    age = time.time() - _created(task_id)
    if age > kept + EXPIRY_ALLOWANCE:
        detail = (
            f"No result is stored any more: the task was enqueued {age:.0f} s ago and results expire after {kept} s."
        )
        raise HTTPException(410, detail)
    return TaskStatus(task_id=task_id, status="PENDING", result=None, error=None, meta=None)


def _created(task_id: str) -> float:
    """Return the time in a UUIDv7: its first 48 bits are milliseconds since 1970 (RFC 9562)."""
    return (uuid.UUID(task_id).int >> 80) / 1000


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
    """Describe an exception as Celery stores it: type, arguments, module."""
    arguments = error.get("exc_message") or []
    message = arguments if isinstance(arguments, str) else " ".join(map(str, arguments))
    first_line = message.strip().partition("\n")[0]
    return f"{error['exc_type']}: {first_line}" if first_line else str(error["exc_type"])
