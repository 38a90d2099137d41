"""Error answers: always ``{"detail": "one sentence"}``, never a stack trace."""

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from celery_durable.aio.errors import (
    BrokerFullError,
    BrokerUnavailableError,
    KeyReusedError,
    QueueFullError,
    WorkersAbsentError,
)
from durable_console.web.body import rule_of
from durable_console.web.errors import RETRY_AFTER, redis_unavailable
from durable_console.web.headers import HEADERS


def add_error_handlers(app: FastAPI) -> None:
    """Give validation errors, an absent Redis and unforeseen exceptions the common shape."""
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(BrokerUnavailableError, redis_unavailable)
    app.add_exception_handler(RedisError, redis_unavailable)
    app.add_exception_handler(QueueFullError, _queue_full)
    app.add_exception_handler(BrokerFullError, _broker_full)
    app.add_exception_handler(WorkersAbsentError, _broker_full)
    app.add_exception_handler(KeyReusedError, _key_reused)
    app.add_exception_handler(Exception, _internal_error)


async def _invalid_parameter(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    return JSONResponse({"detail": f"{problem['loc'][-1]}: {rule_of(problem)}."}, 422)


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
