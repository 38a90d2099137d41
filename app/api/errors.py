"""Error answers: always ``{"detail": "one sentence"}``, never a stack trace."""

import logging
from typing import Any

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from app.api.body import rule_of
from app.api.headers import HEADERS
from app.api.models import ErrorBody
from celery_durable.aio.admission import BrokerFullError, QueueFullError
from celery_durable.aio.publisher import BrokerUnavailableError, KeyReusedError
from celery_durable.aio.workforce import WorkersAbsentError

logger = logging.getLogger(__name__)

# What a client should wait before it tries again, in seconds.
RETRY_AFTER = {"Retry-After": "5"}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` argument of a route that may answer these error statuses."""
    return {status: {"model": ErrorBody} for status in statuses}


def add_error_handlers(app: FastAPI) -> None:
    """Give validation errors, an absent Redis and unforeseen exceptions the common shape."""
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(BrokerUnavailableError, _redis_unavailable)
    app.add_exception_handler(RedisError, _redis_unavailable)
    app.add_exception_handler(QueueFullError, _queue_full)
    app.add_exception_handler(BrokerFullError, _broker_full)
    app.add_exception_handler(WorkersAbsentError, _broker_full)
    app.add_exception_handler(KeyReusedError, _key_reused)
    app.add_exception_handler(Exception, _internal_error)


def unavailable(detail: str) -> HTTPException:
    """Build a 503 that tells the client when to come back."""
    return HTTPException(503, detail, headers=RETRY_AFTER)


async def _invalid_parameter(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    return JSONResponse({"detail": f"{problem['loc'][-1]}: {rule_of(problem)}."}, 422)


async def _redis_unavailable(_: Request, error: Exception) -> JSONResponse:
    logger.warning("Redis is not available: %s: %s", type(error).__name__, error)
    detail = "The task queue is not available at the moment; try again later."
    return JSONResponse({"detail": detail}, 503, headers=RETRY_AFTER)


async def _queue_full(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 429, headers=RETRY_AFTER)


async def _broker_full(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503, headers=RETRY_AFTER)


async def _key_reused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


async def _internal_error(_: Request, __: Exception) -> JSONResponse:
    # The server logs the exception itself. This handler stands outside of all middleware.
    request_id = correlation_id.get() or "-"
    detail = f"Internal error; the logs say more about request {request_id}."
    return JSONResponse({"detail": detail}, 500, headers={**HEADERS, "X-Request-ID": request_id})
