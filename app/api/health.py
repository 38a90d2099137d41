"""Is the process alive, can it take work. Whether workers answer: durable_console.web.health."""

from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError

from app.api.models import Health, Readiness
from app.settings import get_settings
from durable_console.web.errors import documented, unavailable
from durable_console.web.security import DirectRoute

router = APIRouter(prefix="/health", tags=["health"], route_class=DirectRoute)

HEALTHY = Response(Health().model_dump_json(), media_type="application/json")
# Reported only if the host is ready otherwise: playbooks/ops/roll_out.yml waits for it.
DRAINED = "The server is taken out of the balancer."


def _is_drained() -> bool:
    drain_file = get_settings().drain_file
    return drain_file is not None and drain_file.exists()


# Third-party monitors and balancers use HEAD, too.
@router.head("", include_in_schema=False)
@router.get("", response_model=Health)
async def health(_: Request) -> Response:
    """Answer as long as the process lives, whatever its surroundings do."""
    return HEALTHY


@router.head("/ready", include_in_schema=False)
@router.get("/ready", response_model=Readiness, responses=documented(503))
async def ready(request: Request) -> Response:
    """Return whether a balancer may send requests here."""
    if request.app.state.draining:
        raise unavailable("The server is stopping.")
    try:
        await request.app.state.broker.ping()
    except RedisError:
        raise unavailable("The broker does not answer.") from None
    if _is_drained():
        raise unavailable(DRAINED)
    # It stays ready: a balancer without API hosts would keep results from clients, too, and a deployment that brings
    # workers back would wait for it.
    if absent := request.app.state.publisher.workforce.absent():
        return _ready(Readiness(detail=_says_absent(absent)))
    return _ready(Readiness())


def _ready(readiness: Readiness) -> Response:
    return Response(readiness.model_dump_json(exclude_none=True), media_type="application/json")


def _says_absent(seconds: int) -> str:
    limit = get_settings().reject_without_workers_seconds
    sentence = f"No worker has reported for {seconds} s, though {get_settings().workers_expected} are expected"
    if not limit:
        return f"{sentence}; tasks wait."
    return (
        f"{sentence}; tasks are rejected."
        if seconds >= limit
        else f"{sentence}; tasks wait, and are rejected after {limit} s."
    )
