"""The reference for enqueueing: a route that calls ``apply_async``, as Celery's documentation shows it."""

import uuid
from typing import Any

from fastapi import FastAPI

from tests.bench.guide_worker import tiny

app = FastAPI()


@app.post("/tasks/enqueue", status_code=202)
async def enqueue(body: dict[str, Any]) -> dict[str, str]:
    """Put a task into the queue."""
    task_id = str(uuid.uuid4())
    tiny.apply_async(args=(body["data"],), task_id=task_id)
    return {"task_id": task_id, "status": "pending", "message": "Task enqueued successfully"}
