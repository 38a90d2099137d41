"""Counts of workers and tasks: for people, and for Prometheus."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from celery_durable.aio.inspector import Inspector
from durable_console.web.errors import documented
from durable_console.web.models import CeleryMetrics, TaskMetrics, WorkerMetrics
from durable_console.web.prometheus import Prometheus
from durable_console.web.security import MetricsRoute, ProtectedRoute

router = APIRouter(prefix="/metrics", tags=["metrics"], route_class=ProtectedRoute, responses=documented(401, 429))

# For Prometheus, with its own key.
scraped = APIRouter(prefix="/metrics", tags=["metrics"], route_class=MetricsRoute, responses=documented(401, 429))


@scraped.get("", response_model=None, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
async def metrics(request: Request) -> PlainTextResponse:
    """Return everything that is counted, in Prometheus' text format."""
    prometheus: Prometheus = request.app.state.prometheus
    return PlainTextResponse(await prometheus.page(), media_type=CONTENT_TYPE_LATEST)


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
