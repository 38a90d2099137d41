"""The FastAPI application; ``uvicorn app.main:app`` starts here."""

import asyncio
import gc
import logging.config
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.api import alerts, health, metrics, status, tasks
from app.api.connections import STOP
from app.api.errors import add_error_handlers
from app.api.headers import DOCS, SecurityHeaders, docs_policy
from app.api.prometheus import Prometheus, instrument
from app.api.security import Guard, KeyRequired, document_schemes
from app.api.status import PATH, POLICY, Observer
from app.logs import log_config
from app.settings import get_settings
from celery_durable.aio.arrivals import Arrivals
from celery_durable.aio.clients import broker_client, results_client
from celery_durable.aio.inspector import Inspector
from celery_durable.aio.lookup import Lookup
from celery_durable.aio.publisher import Publisher
from celery_durable.options import current

TITLE = "TypeSafe agent API"
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    settings = get_settings()
    async with broker_client(current()) as broker, results_client(current()) as results:
        app.state.broker, app.state.results = broker, results
        app.state.publisher, app.state.inspector = Publisher(broker, results), Inspector(broker)
        app.state.lookup = Lookup(broker, results, app.state.publisher.remembers)
        app.state.arrivals = Arrivals(results, tasks.WAITERS)
        app.state.prometheus = Prometheus(broker)
        app.state.observer = Observer(app.state.prometheus, broker, results)
        app.state.guard = Guard(settings)
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
    app.add_middleware(
        CorrelationIdMiddleware, validator=lambda request_id: REQUEST_ID.fullmatch(request_id) is not None
    )
    app.add_middleware(SecurityHeaders, policies={DOCS: docs_policy(app), PATH: POLICY})
    app.add_middleware(KeyRequired)
    add_error_handlers(app)
    app.include_router(metrics.scraped)
    for module in (tasks, health, metrics, status, alerts):
        app.include_router(module.router)
    document_schemes(app)
    instrument(app)
    return app


app = create_app()
