"""An agent's run: it waits nearly all of its time, for a language model and for tools. The waiting is simulated."""

import asyncio
import logging
from typing import Any

from celery import Task

from app.agents.worker import celery_app

logger = logging.getLogger(__name__)

# What it waits for, and how many seconds: ten in all.
STEPS = (("Asking the model", 4.0), ("Calling a tool", 2.0), ("Asking the model again", 4.0))


@celery_app.task(bind=True)
async def agent_run(self: Task[Any, Any], task_id: str, data: dict[str, Any]) -> dict[str, Any]:
    """Wait as a run does and return the result; in the pool asyncio hundreds of them wait in one process.

    Args:
        self: the bound task.
        task_id: id of the task, the same as Celery's.
        data: the client's data.

    Returns:
        ``task_id``, ``status``, ``result`` and ``data``.
    """
    for number, (status, seconds) in enumerate(STEPS, start=1):
        # In the pool asyncio it returns at once: it is stored off the event loop.
        self.update_state(state="PROGRESS", meta={"current": number, "total": len(STEPS), "status": status})
        logger.info("Step %d of %d: %s", number, len(STEPS), status)
        await asyncio.sleep(seconds)
    return {"task_id": task_id, "status": "completed", "result": "Success", "data": data}
