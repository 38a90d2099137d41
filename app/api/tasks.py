"""Enqueueing a task and querying its status."""

import asyncio
import json
import os
import time
from contextlib import suppress
from typing import Annotated, Any

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, HTTPException, Request, Response
from prometheus_client import Counter
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from redis.exceptions import RedisError
from starlette.convertors import PathConvertor, register_url_convertor

from app.agents.tasks.agent_run import agent_run
from app.agents.tasks.example_task import example_agent_task
from app.api.body import read_batch_request, read_enqueue_request
from app.api.models import (
    DEFAULT_TASK,
    IDEMPOTENCY_HELP,
    LONGEST_ID,
    VISIBLE_ASCII,
    BatchRequest,
    BatchResponse,
    EnqueueRequest,
    EnqueueResponse,
    StatusRequest,
    StatusResponse,
    TaskName,
    TaskStatus,
    canonical,
    visible_key,
)
from app.api.outcome import Outcome, describe, known, unknown
from app.settings import get_settings
from celery_durable.aio.arrivals import Arrivals
from celery_durable.aio.errors import KeyReusedError
from celery_durable.aio.lookup import Found, Lookup
from celery_durable.aio.publisher import NewTask, Publisher
from celery_durable.task_ids import created
from durable_console.web.body import read_json, rule_of
from durable_console.web.errors import documented
from durable_console.web.security import ProtectedDirectRoute

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=ProtectedDirectRoute, responses=documented(401, 429))

# Seconds that clocks of different hosts may differ, and a result may be late, before an id counts as expired.
EXPIRY_ALLOWANCE = 5
# Seconds that a client may wait for a task's end. A balancer without a ready API waits 15 s for an answer.
LONGEST_WAIT = 10
# Seconds after which a client retries, when too many others wait already.
WAIT_ELSEWHERE = {"Retry-After": "2"}
# Seconds between two reads while Redis is down and a client waits.
OUTAGE_PAUSE = 0.5
# Requests that wait, of one host: half of those that a balancer sends to it. Processes are as many as processors.
HOST_WAITERS = 128
WAITERS = max(HOST_WAITERS // (os.cpu_count() or 1), 8)
ENQUEUED = Counter("celery_tasks_enqueued", "Tasks that the API has put into a queue.", ["task"])
WAIT_HELP = (
    "Seconds to wait for the task's end before its present state is answered. Where too many wait already, the answer "
    "comes at once and has Retry-After."
)
TASKS = {"example_agent_task": example_agent_task, "agent_run": agent_run}
# Tasks that are described before other requests have their turn.
SLICE = 20
NEVER_OR_NO_MORE = "No such task: it was never accepted here, or its result has expired or was dropped to make room."
NEVER_OR_DROPPED = "No such task: it was never accepted here, or its result was dropped to make room."
IDEMPOTENCY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": IDEMPOTENCY_HELP,
    "schema": {"type": "string", "pattern": VISIBLE_ASCII},
}
TASK_ID = {
    "name": "task_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_ID, "title": "Task Id"},
}
_wait = TypeAdapter(
    Annotated[int, Field(ge=0, le=LONGEST_WAIT, title="Wait", description=WAIT_HELP, json_schema_extra={"default": 0})]
)
WAIT = {"name": "wait", "in": "query", "required": False, "description": WAIT_HELP, "schema": _wait.json_schema()}
# The use of the response's task id, for programs that read /openapi.json.
STATUS_LINK = {"status": {"operationId": "status", "parameters": {"task_id": "$response.body#/task_id"}}}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that is read by hand: limited while it streams, parsed once."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    for field in schema["properties"].values():
        if reference := field.get("items", {}).get("$ref"):
            field["items"] = definitions[reference.rpartition("/")[2]]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _idempotency_key(request: Request) -> str | None:
    """Read the header by hand; FastAPI takes a tenth of a request's time for it.

    Raises:
        HTTPException: 422.
    """
    keys = request.headers.getlist("Idempotency-Key")
    if len(keys) > 1:
        raise HTTPException(422, "Idempotency-Key: must be sent once.")
    try:
        return visible_key(keys[0]) if keys else None
    except ValueError as error:
        raise HTTPException(422, f"Idempotency-Key: {error}.") from None


@router.post(
    "/enqueue",
    status_code=202,
    response_model=EnqueueResponse,
    responses={202: {"links": STATUS_LINK}, **documented(408, 413, 415, 422, 503)},
    openapi_extra={"parameters": [IDEMPOTENCY_HEADER], **_body(EnqueueRequest)},
)
async def enqueue(request: Request) -> Response:
    """Put a task into the queue; 202 means that it is there."""
    idempotency_key = _idempotency_key(request)
    body = await read_enqueue_request(request, get_settings().max_body_bytes)
    publisher: Publisher = request.app.state.publisher
    task, key = TASKS[body.task], _key_of(body.task, idempotency_key)
    published = await publisher.publish(task, body.data, correlation_id.get(), key)
    if published.new:
        ENQUEUED.labels(task.name).inc()
    return _accepted(EnqueueResponse(task_id=published.task_id, replicated=None if published.replicated else False))


@router.post(
    "/enqueue/batch",
    status_code=202,
    response_model=BatchResponse,
    responses=documented(408, 413, 415, 422, 503),
    openapi_extra=_body(BatchRequest),
)
async def enqueue_batch(request: Request) -> Response:
    """Put several tasks into the queue, all or none; 202 means that all of them are there."""
    if "Idempotency-Key" in request.headers:
        raise HTTPException(422, "Idempotency-Key: each task of a batch has its own, as its idempotency_key.")
    body = await read_batch_request(request, get_settings().max_body_bytes)
    task = TASKS[body.task]
    batch = [NewTask(entry.data, _key_of(body.task, entry.idempotency_key)) for entry in body.tasks]
    publisher: Publisher = request.app.state.publisher
    try:
        published = await publisher.publish_batch(task, batch, correlation_id.get())
    except KeyReusedError as error:
        raise HTTPException(422, f"tasks.{error.number}.idempotency_key: {error}") from None
    ENQUEUED.labels(task.name).inc(sum(one.new for one in published))
    replicated = all(one.replicated for one in published)
    answer = BatchResponse(task_ids=[one.task_id for one in published], replicated=None if replicated else False)
    return _accepted(answer)


def _accepted(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), 202, media_type="application/json")


def _key_of(task: TaskName, key: str | None) -> str | None:
    """Return a client's idempotency key as that of one task; those of the first task are as they always were."""
    return key if key is None or task == DEFAULT_TASK else f"{task} {key}"


class _AnyText(PathConvertor):
    """An id may hold slashes, and even ends of lines."""

    regex = "(?s:.*)"


register_url_convertor("any_text", _AnyText())


@router.get(
    "/status/{task_id:any_text}",
    operation_id="status",
    response_model=TaskStatus,
    responses=documented(404, 410, 422, 503),
    openapi_extra={"parameters": [TASK_ID, WAIT]},
)
async def status(request: Request) -> Response:
    """Return the state of a task: 404 for an unknown one, 410 when its result must have expired."""
    task_id, wait = _asked(request)
    state = request.app.state
    outcome = await _outcome(task_id, await state.lookup.one(task_id))
    headers = None
    if wait and not outcome.is_final:
        if state.arrivals.has_room:
            outcome = await _await_end(task_id, request, time.monotonic() + wait, outcome)
        else:
            headers = WAIT_ELSEWHERE
    return Response(outcome.content, outcome.code, headers, media_type="application/json")


def _asked(request: Request) -> tuple[str, int]:
    """Return a status request's task id and its seconds to wait.

    Raises:
        HTTPException: 422.
    """
    try:
        task_id = canonical(request.path_params["task_id"])
    except ValueError as error:
        raise HTTPException(422, f"task_id: {error}.") from None
    if not request.scope["query_string"]:
        return task_id, 0
    try:
        return task_id, _wait.validate_python(request.query_params.get("wait", 0))
    except ValidationError as error:
        raise HTTPException(422, f"wait: {rule_of(error.errors()[0])}.") from None


async def _await_end(task_id: str, request: Request, deadline: float, outcome: Outcome) -> Outcome:
    """Return the outcome when the task ends, and at the deadline at the latest.

    Raises:
        redis.exceptions.RedisError: Redis does not answer at the deadline.
    """
    lookup: Lookup = request.app.state.lookup
    arrivals: Arrivals = request.app.state.arrivals
    with arrivals.expect(task_id) as changed:
        gone = asyncio.create_task(_until_gone(request, changed))
        try:
            while not gone.done() and not outcome.is_final:
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), deadline - time.monotonic())
                changed.clear()
                is_last = arrivals.has_stopped or time.monotonic() >= deadline
                try:
                    outcome = await _outcome(task_id, await lookup.one(task_id))
                except RedisError:
                    if is_last:
                        raise
                    await asyncio.sleep(OUTAGE_PAUSE)
                    changed.set()
                if is_last:
                    break
        finally:
            gone.cancel()
    return outcome


async def _until_gone(request: Request, changed: asyncio.Event) -> None:
    """Wake a request whose client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    changed.set()


@router.post(
    "/status",
    response_model=StatusResponse,
    responses=documented(408, 413, 415, 422, 503),
    openapi_extra=_body(StatusRequest),
)
async def statuses(request: Request) -> Response:
    """Return the states of several tasks, each as its own status route does."""
    body = await read_json(request, get_settings().max_body_bytes, StatusRequest)
    lookup: Lookup = request.app.state.lookup
    found = await lookup.many(body.task_ids)
    entries = []
    for number, task_id in enumerate(body.task_ids, start=1):
        if number % SLICE == 0:
            await asyncio.sleep(0)
        outcome = await _outcome(task_id, found)
        names = {"code": outcome.code} if outcome.state else {"task_id": task_id, "code": outcome.code}
        entries.append(f"{json.dumps(names)[:-1]}, {outcome.content[1:]}")
    return Response(f'{{"tasks": [{", ".join(entries)}]}}', media_type="application/json")


async def _outcome(task_id: str, found: Found) -> Outcome:
    if task_id in found:
        stored = found[task_id]
        return known(task_id, "PENDING") if stored is None else await describe(task_id, stored)
    kept = get_settings().result_expires
    since = created(task_id)
    if since is None:
        return unknown(404, NEVER_OR_NO_MORE)
    age = time.time() - since
    if age > kept + EXPIRY_ALLOWANCE:
        return unknown(
            410,
            f"No result is stored any more: the task was enqueued {age:.0f} s ago and results expire after {kept} s.",
        )
    return unknown(404, NEVER_OR_DROPPED)
