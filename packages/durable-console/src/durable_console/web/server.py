"""``durable-console serve``: the routers as a service of their own."""

import logging.config
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Self

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from celery_durable import masking, secret_files
from celery_durable.aio.clients import broker_client, results_client
from celery_durable.logs import log_config
from celery_durable.options import OptionError, Options, Variables, read
from celery_durable.web.access_log import bounded
from celery_durable.web.rate_limit import RULE, is_rate
from durable_console import web
from durable_console.web.connections import Protocol
from durable_console.web.errors import redis_unavailable
from durable_console.web.headers import HEADERS, SecurityHeaders
from durable_console.web.security import Guard

LOCAL = "redis://localhost:6379"
# Bytes of a request's body: Alertmanager sends at most 50 alerts of some hundred bytes.
MAX_BODY_BYTES = 256 * 1024
# Requests of one key. Prometheus comes every few seconds, a page every ten.
REQUESTS = "100/second"
# Requests at once, and seconds that running ones get to finish.
CONCURRENCY = 64
GRACEFUL_STOP_SECONDS = 5
# A key that can be guessed is no key: characters, and how many of them differ.
MIN_KEY_LENGTH, MIN_KEY_VARIETY = 16, 8
LEVELS = ("debug", "info", "warning", "error", "critical")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One value for each variable."""

    keys: tuple[str, ...] = field(default=(), repr=False)
    metrics_keys: tuple[str, ...] = field(default=(), repr=False)
    failed_login_limit: str = "30/minute"  # requests without a valid key from one address
    log_level: str = "info"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the variables; an empty one counts as absent.

        Raises:
            OptionError: a value is wrong, or there is no key; the message is one sentence that holds no secret.
        """
        given = read(VARIABLES, {name: environ.get(name, "") for name in VARIABLES if name not in KEYS})
        for name, option in KEYS.items():
            given[option] = keys = tuple(environ.get(name, "").replace(",", " ").split())
            if not all(map(_is_strong, keys)):
                rule = f"at least {MIN_KEY_LENGTH} visible ASCII characters, {MIN_KEY_VARIETY} of them different"
                raise OptionError(f"{name} is rejected: each key must have {rule}.")
        if not given["keys"]:
            raise OptionError("BACKEND_API_KEY is not set: give the console a key, without which it does not start.")
        return cls(**given)


def _is_strong(key: str) -> bool:
    return re.fullmatch(rf"[!-~]{{{MIN_KEY_LENGTH},}}", key) is not None and len(set(key)) >= MIN_KEY_VARIETY


def _rate(value: str) -> str:
    if not is_rate(value):
        raise ValueError
    return value


def _level(value: str) -> str:
    return LEVELS[LEVELS.index(value.lower())]


# Those of people, and those of Prometheus and Alertmanager.
KEYS = {"BACKEND_API_KEY": "keys", "METRICS_API_KEY": "metrics_keys"}
VARIABLES: Variables = {
    "CONSOLE_FAILED_LOGIN_LIMIT": ("failed_login_limit", _rate, RULE),
    "CONSOLE_LOG_LEVEL": ("log_level", _level, f"one of {', '.join(LEVELS)}"),
}


def create_app(settings: Settings, options: Options) -> FastAPI:
    """Build the service for the Celery application of ``options``."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with broker_client(options) as broker, results_client(options) as results:
            web.prepare(app.state, options, broker, results, name="Console")
            yield

    app = FastAPI(title="durable-console", openapi_url=None, lifespan=lifespan)
    app.state.max_body_bytes = MAX_BODY_BYTES
    app.state.guard = Guard(
        settings.keys, settings.metrics_keys, requests=REQUESTS, failed_logins=settings.failed_login_limit
    )
    app.add_middleware(SecurityHeaders, policies=web.POLICIES)
    app.add_exception_handler(RedisError, redis_unavailable)
    app.add_exception_handler(Exception, _internal_error)
    app.add_api_route("/health", _health, methods=["GET", "HEAD"])
    for router in web.ROUTERS:
        app.include_router(router)
    return app


async def _health() -> dict[str, str]:
    """Answer as long as the process lives."""
    return {"status": "healthy"}


async def _internal_error(_: Request, __: Exception) -> JSONResponse:
    # This handler stands outside of all middleware; the server logs the exception.
    return JSONResponse({"detail": "Internal error; the logs say more."}, 500, headers=HEADERS)


def serve(bind: str, port: int) -> None:
    """Serve until the process is told to stop.

    Raises:
        OptionError: a variable has a wrong value.
    """
    secret_files.load(os.environ)
    settings, options = Settings.from_environment(), Options.from_environment()
    broker, results = (os.environ.get(name) for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"))
    urls = (broker or f"{LOCAL}/0", results or f"{LOCAL}/1")
    masking.hide((*urls, *settings.keys, *settings.metrics_keys, *options.secrets))
    options = replace(options, broker_url=urls[0], result_url=urls[1])
    config = bounded(log_config("console", settings.log_level))
    # uvicorn brings handlers of its own.
    config["loggers"] |= {name: {"handlers": [], "propagate": True} for name in ("uvicorn", "uvicorn.access")}
    logging.config.dictConfig(config)
    uvicorn.run(
        create_app(settings, options),
        host=bind,
        port=port,
        log_config=None,
        http=Protocol,
        limit_concurrency=CONCURRENCY,
        timeout_graceful_shutdown=GRACEFUL_STOP_SECONDS,
        # Nobody stands in front of it: an address in X-Forwarded-For is made up.
        proxy_headers=False,
        server_header=False,
    )
