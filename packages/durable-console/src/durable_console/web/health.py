"""Do workers answer."""

from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError

from celery_durable.aio.inspector import Answers, Inspector
from durable_console.web.errors import RETRY_AFTER
from durable_console.web.models import WorkersHealth

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/celery", responses={503: {"model": WorkersHealth}})
async def celery(request: Request, response: Response) -> WorkersHealth:
    """List the workers that answer within a second and count their running tasks."""
    inspector: Inspector = request.app.state.inspector
    try:
        active = await inspector.ask("active")
    except RedisError:
        active = Answers()
    if not active:
        response.status_code = 503
        response.headers.update(RETRY_AFTER)
    return WorkersHealth(
        status="healthy" if active else "unhealthy",
        workers=sorted(active),
        active_tasks=sum(map(len, active.values())),
    )
