"""Counts of workers and tasks."""

import asyncio

from fastapi import APIRouter, Request

from app.agents.inspector import Inspector
from app.api.errors import documented
from app.api.models import CeleryMetrics, TaskMetrics, WorkerMetrics
from app.api.security import ProtectedRoute

router = APIRouter(prefix="/metrics", tags=["metrics"], route_class=ProtectedRoute, responses=documented(401, 429))


@router.get("/celery", responses=documented(503))
async def celery(request: Request) -> CeleryMetrics:
    """Count workers, running tasks and tasks that wait for their time; zeros when no worker answers."""
    inspector: Inspector = request.app.state.inspector
    active, scheduled = await asyncio.gather(inspector.ask("active"), inspector.ask("scheduled"))
    names = sorted(active.keys() | scheduled.keys())
    return CeleryMetrics(
        workers=WorkerMetrics(count=len(names), names=names),
        tasks=TaskMetrics(
            active=sum(map(len, active.values())),
            scheduled=sum(map(len, scheduled.values())),
        ),
    )
