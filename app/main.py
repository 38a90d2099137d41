"""The FastAPI application; ``uvicorn app.main:app`` starts here."""

import asyncio
import gc
import logging.config
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.agents.worker import celery_app
from app.api import health, tasks
from app.api.errors import add_error_handlers
from app.api.middleware import EachRequest
from app.logs import log_config
from app.settings import get_settings
from celery_durable.aio.arrivals import Arrivals
from celery_durable.aio.clients import broker_client, results_client
from celery_durable.aio.lookup import Lookup
from celery_durable.aio.publisher import Publisher
from celery_durable.options import options_of
from durable_console import web
from durable_console.web.connections import STOP
from durable_console.web.headers import DOCS, docs_policy
from durable_console.web.security import Guard, document_schemes

TITLE = "TypeSafe agent API"


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    settings, options = get_settings(), options_of(celery_app)
    async with broker_client(options) as broker, results_client(options) as results:
        app.state.broker, app.state.results = broker, results
        app.state.publisher = Publisher(options, broker, results)
        app.state.lookup = Lookup(broker, results, app.state.publisher.remembers)
        app.state.arrivals = Arrivals(results, tasks.WAITERS)
        web.prepare(app.state, options, broker, results, name="API")
        app.state.max_body_bytes = settings.max_body_bytes
        app.state.guard = Guard(
            settings.api_keys,
            settings.metrics_keys,
            requests=settings.rate_limit,
            failed_logins=settings.failed_login_limit,
        )
        app.state.draining = False
        running = [asyncio.create_task(each) for each in (app.state.publisher.watch(), app.state.arrivals.listen())]
        # What is there now stays: a full garbage collection without it takes as long as some hundred requests.
        gc.collect()
        gc.freeze()
        yield {STOP: app.state.arrivals.stop}
        app.state.draining = True
        for task in running:
            task.cancel()


def create_app() -> FastAPI:
    """Build the application and take over the logging of the server that runs it."""
    settings = get_settings()
    logging.config.dictConfig(log_config("api", settings.log_level))
    if settings.api_docs:
        # Its /docs brings its own scripts: the page works where the browser reaches this host alone.
        app = FastAPIOffline(title=TITLE, redoc_url=None, lifespan=_lifespan)
    else:
        app = FastAPI(title=TITLE, openapi_url=None, lifespan=_lifespan)
    app.add_middleware(EachRequest, policies={DOCS: docs_policy(app), **web.POLICIES})
    add_error_handlers(app)
    # include_router would leave a router inside of the router, which looks for each request's route twice. In front of
    # the pages, and what is requested most first: the routes are tried in turn.
    app.router.routes[:0] = [route for router in (health.router, tasks.router, *web.ROUTERS) for route in router.routes]
    document_schemes(app)
    return app


app = create_app()
