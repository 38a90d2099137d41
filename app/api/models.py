"""Bodies of requests and answers."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

VISIBLE_ASCII = r"^[!-~]{1,255}$"
IDEMPOTENCY_HELP = (
    "1 to 255 visible ASCII characters that name this task. A repeated request with the same key and data gets the "
    "same task id and enqueues nothing, as long as results are kept. The same key with other data is rejected with 422."
)
# Ids of ours, which clients may write in capitals; Celery takes any text for one.
UUID7 = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"
LONGEST_ID = 255
# Tasks of one request.
LARGEST_BATCH = 1000


def visible_key(key: str | None) -> str | None:
    """Return a client's idempotency key.

    Raises:
        ValueError: the rule of a key.
    """
    if key is not None and not re.fullmatch(VISIBLE_ASCII, key):
        raise ValueError("must be 1 to 255 visible ASCII characters without spaces")
    return key


def canonical(task_id: str) -> str:
    """Return a task's id as it is stored.

    Raises:
        ValueError: the rule of an id.
    """
    if not 1 <= len(task_id) <= LONGEST_ID:
        raise ValueError(f"must have 1 to {LONGEST_ID} characters")
    return task_id.lower() if re.fullmatch(UUID7, task_id) else task_id


# The patterns are not pydantic's to check, whose sentence would show the pattern.
TaskId = Annotated[
    str, AfterValidator(canonical), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": LONGEST_ID})
]

Data = Annotated[dict[str, Any], Field(description="Passed to the task as it is; at most 64 levels deep.")]
TaskName = Annotated[
    Literal["example_agent_task", "agent_run"],
    Field(description="Which task runs; its queue follows from task_routes. An idempotency key belongs to one task."),
]
DEFAULT_TASK: TaskName = "example_agent_task"


class EnqueueRequest(BaseModel):
    """A client's request to run a task."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"data": {"key": "value"}}})

    data: Data
    task: TaskName = DEFAULT_TASK


class BatchEntry(BaseModel):
    """A task of a batch."""

    model_config = ConfigDict(extra="forbid")

    data: Data

    idempotency_key: Annotated[str | None, AfterValidator(visible_key)] = Field(
        default=None,
        description=IDEMPOTENCY_HELP,
        json_schema_extra={"anyOf": [{"type": "string", "pattern": VISIBLE_ASCII}, {"type": "null"}]},
    )


class BatchRequest(BaseModel):
    """A client's request to run several tasks."""

    model_config = ConfigDict(extra="forbid")

    tasks: list[BatchEntry] = Field(min_length=1, max_length=LARGEST_BATCH)
    task: TaskName = DEFAULT_TASK


class StatusRequest(BaseModel):
    """The tasks of a client's status request."""

    model_config = ConfigDict(extra="forbid")

    task_ids: list[TaskId] = Field(min_length=1, max_length=LARGEST_BATCH)


class EnqueueResponse(BaseModel):
    """The task is in its queue."""

    task_id: str
    status: Literal["pending"] = "pending"
    message: str = "Task enqueued successfully"
    replicated: Literal[False] | None = Field(
        default=None, description="Only there when too few replicas have the task: it could be lost with the primary."
    )


class BatchResponse(BaseModel):
    """The tasks are in their queue."""

    task_ids: list[str] = Field(description="In the order of the request.")
    status: Literal["pending"] = "pending"
    message: str = "Tasks enqueued successfully"
    replicated: Literal[False] | None = Field(
        default=None,
        description="Only there when too few replicas have the tasks: they could be lost with the primary.",
    )


class TaskStatus(BaseModel):
    """The status of a task."""

    task_id: str
    status: str = Field(
        description="PENDING, STARTED, PROGRESS, RETRY, SUCCESS, FAILURE, REVOKED, a state of the task's own, or "
        "UNKNOWN when the stored result is unreadable."
    )
    result: Any = Field(description="The task's return value, once it has succeeded.")
    error: str | None = Field(description="One line about the failure, or about why the task is retried.")
    meta: Any = Field(
        description="Progress (current, total, status) while the status is PROGRESS; else the task's own metadata."
    )


class KnownTask(TaskStatus):
    """The status of one of several tasks."""

    code: Literal[200] = Field(description="The code of the task's own status route.")


class UnknownTask(BaseModel):
    """One of several tasks that nothing is known about."""

    task_id: str
    code: Literal[404, 410] = Field(description="The code of the task's own status route.")
    detail: str = Field(description="One sentence.")


class StatusResponse(BaseModel):
    """The statuses of several tasks."""

    tasks: list[KnownTask | UnknownTask] = Field(description="In the order of the request.")


class Health(BaseModel):
    """The process lives."""

    status: Literal["healthy"] = "healthy"


class Readiness(BaseModel):
    """The process can take work."""

    status: Literal["ready"] = "ready"
    detail: str | None = Field(default=None, description="Only there when no worker reports, though some are expected.")
