"""Error answers: always ``{"detail": "one sentence"}``."""

import logging
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse

from durable_console.web.models import ErrorBody

logger = logging.getLogger(__name__)

# What a client should wait before it tries again, in seconds.
RETRY_AFTER = {"Retry-After": "5"}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` argument of a route that may answer these error statuses."""
    return {status: {"model": ErrorBody} for status in statuses}


def unavailable(detail: str) -> HTTPException:
    """Build a 503 that tells the client when to come back."""
    return HTTPException(503, detail, headers=RETRY_AFTER)


async def redis_unavailable(_: Request, error: Exception) -> JSONResponse:
    """Answer for a Redis that is away."""
    logger.warning("Redis is not available: %s: %s", type(error).__name__, error)
    detail = "The task queue is not available at the moment; try again later."
    return JSONResponse({"detail": detail}, 503, headers=RETRY_AFTER)
