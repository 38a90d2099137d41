"""Is the process alive, can it take work, do workers answer."""

from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError

from app.agents.inspector import Answers, Inspector
from app.api.errors import RETRY_AFTER, documented, unavailable
from app.api.models import Health, Readiness, WorkersHealth

router = APIRouter(prefix="/health", tags=["health"])


@router.get("")
async def health() -> Health:
    """Answer as long as the process lives, whatever its surroundings do."""
    return Health()


@router.get("/ready", responses=documented(503))
async def ready(request: Request) -> Readiness:
    """Tell a balancer whether to send requests here."""
    if request.app.state.draining:
        raise unavailable("The server is stopping.")
    try:
        await request.app.state.broker.ping()
    except RedisError:
        raise unavailable("The broker does not answer.") from None
    return Readiness()


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
