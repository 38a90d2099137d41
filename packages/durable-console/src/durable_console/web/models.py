"""Bodies of answers."""

from typing import Literal

from pydantic import BaseModel, Field


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
    """Tasks in flight: running, and scheduled (retries)."""

    active: int
    scheduled: int


class CeleryMetrics(BaseModel):
    """Counts over all workers that answer."""

    workers: WorkerMetrics
    tasks: TaskMetrics


class ErrorBody(BaseModel):
    """Every error has this shape."""

    detail: str = Field(description="One sentence.")
