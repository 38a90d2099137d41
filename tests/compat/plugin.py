"""Makes Celery's suite use the platform: ``pytest -p tests.compat.plugin t/integration``.

Its applications get our configuration and transport below their own settings, as a producer of an
installation has them; its session worker is a process of ours, with a user of its own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from celery import Celery
from celery.contrib.testing import app as testing_app
from celery.contrib.testing import worker as testing_worker
from celery.utils.nodenames import anon_nodename

import celery_durable
from app.agents.config import celery_config, durable_options
from app.settings import get_settings
from tests.support import start_worker

make_app = testing_app.TestApp
get_settings()  # which are kept
# Celery prefers it to what a test configures.
del os.environ["CELERY_RESULT_BACKEND"]


def producer(config: dict[str, Any] | None = None, **kwargs: Any) -> Celery:
    """Make the suite's application one of an installation; arguments are those of Celery's TestApp."""
    settings = {name: value for name, value in celery_config(get_settings()).items() if name != "include"}
    app: Celery = make_app(config={**settings, **(config or {})}, **kwargs)
    celery_durable.install(app, durable_options(get_settings()))
    return app


@contextmanager
def worker(*_: Any, **__: Any) -> Iterator[SimpleNamespace]:
    """Run our worker, with the variables WORKER_* as its environment, as long as the session lasts."""
    variables = {
        name.removeprefix("WORKER_"): value for name, value in os.environ.items() if name.startswith("WORKER_")
    }
    name, node = anon_nodename().partition("@")[0], anon_nodename()
    program = start_worker(Path(variables["LOG"]), variables, "--concurrency=1", app="tests.compat.worker", name=name)
    yield SimpleNamespace(hostname=node)
    program.stop()


testing_app.TestApp = producer  # type: ignore[assignment]
testing_worker.start_worker = worker  # type: ignore[assignment]
