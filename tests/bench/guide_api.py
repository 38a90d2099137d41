"""The reference for requests: routes that call Celery as its documentation shows it."""

import uuid
from typing import Any

from celery.result import AsyncResult
from fastapi import FastAPI

from tests.bench.guide_worker import celery_app, tiny

app = FastAPI()


@app.post("/tasks/enqueue", status_code=202)
async def enqueue(body: dict[str, Any]) -> dict[str, str]:
    """Put a task into the queue."""
    task_id = str(uuid.uuid4())
    tiny.apply_async(args=(body["data"],), task_id=task_id)
    return {"task_id": task_id, "status": "pending", "message": "Task enqueued successfully"}


@app.get("/tasks/status/{task_id}")
async def status(task_id: str) -> dict[str, Any]:
    """Look at what is stored of a task."""
    found: AsyncResult[Any] = AsyncResult(task_id, app=celery_app)
    return {"task_id": task_id, "status": found.status, "result": found.result if found.ready() else None}


@app.get("/health")
async def health() -> dict[str, str]:
    """Answer without looking at anything: the least that a route of FastAPI costs."""
    return {"status": "ok"}
