"""Bodies of requests and answers."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class EnqueueRequest(BaseModel):
    """What a client sends to have a task run."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"data": {"key": "value"}}})

    data: dict[str, Any] = Field(description="Passed to the task as it is; at most 64 levels deep.")


class EnqueueResponse(BaseModel):
    """The task is in its queue."""

    task_id: str
    status: Literal["pending"] = "pending"
    message: str = "Task enqueued successfully"
    replicated: Literal[False] | None = Field(
        default=None, description="Only there when too few replicas have the task: it could be lost with the primary."
    )


class TaskStatus(BaseModel):
    """What is known about a task."""

    task_id: str
    status: str = Field(
        description="PENDING, STARTED, PROGRESS, RETRY, SUCCESS, FAILURE, REVOKED, a state of the task's own, or "
        "UNKNOWN when what is stored cannot be read."
    )
    result: Any = Field(description="What the task returned, once it has succeeded.")
    error: str | None = Field(description="One line about the failure, or about why the task is retried.")
    meta: Any = Field(
        description="Progress (current, total, status) while the status is PROGRESS; else what the task stored with it."
    )


class Health(BaseModel):
    """The process lives."""

    status: Literal["healthy"] = "healthy"


class Readiness(BaseModel):
    """The process can take work."""

    status: Literal["ready"] = "ready"
    detail: str | None = Field(default=None, description="Only there when no worker reports, though some are expected.")


class WorkersHealth(BaseModel):
    """The workers that answer."""

    status: Literal["healthy", "unhealthy"]
    workers: list[str]
    active_tasks: int


class WorkerMetrics(BaseModel):
    """Workers that answer."""

    count: int
    names: list[str]


class TaskMetrics(BaseModel):
    """Tasks in the hands of workers: running, and waiting for their time (retries)."""

    active: int
    scheduled: int


class CeleryMetrics(BaseModel):
    """Counts over all workers that answer."""

    workers: WorkerMetrics
    tasks: TaskMetrics


class ErrorBody(BaseModel):
    """Every error has this shape."""

    detail: str = Field(description="One sentence.")
