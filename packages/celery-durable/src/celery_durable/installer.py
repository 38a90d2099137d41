"""Puts the library into an application: the same for every way in."""

from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from celery import Celery

from celery_durable import defaults, eager, masking
from celery_durable.options import Options
from celery_durable.worker import app_connection, lifecycle, results, runtime, systemd, task_logs

# Celery's own, where nothing is configured, is RabbitMQ.
DEFAULT_BROKER = "redis://localhost:6379/0"


def install(celery: Celery, options: Options | None = None) -> None:
    """Give an application the guarantees, as soon as its configuration is loaded."""
    app: Any = celery  # whose type stubs leave these attributes out
    app.control_cls = "celery_durable.control:Control"
    app.Beat = lambda **kwargs: import_module("celery_durable.beat").program(app, **kwargs)
    later = partial(finish, app, options)
    if app.configured:
        later()
    else:
        app._pending_defaults.append(later)  # noqa: SLF001 - the only hook that Django's fixup leaves time for


def finish(app: Any, options: Options | None) -> dict[str, Any]:
    """Put everything in its place; to be called when the configuration of ``app`` is loaded. Returns no defaults."""
    options = options or Options.from_environment()
    options = replace(
        options,
        broker_url=options.broker_url or app.conf.broker_url or DEFAULT_BROKER,
        result_url=options.result_url or _redis_only(app.conf.result_backend),
    )
    options = replace(options, secrets=(options.broker_url, options.result_url, *options.secrets))
    if not app.conf.broker_url:
        app.conf.broker_url = options.broker_url
    app.durable_options = options
    masking.hide(options.secrets)
    defaults.apply(app, options)
    app_connection.install(app)
    results.install(app)
    eager.install()
    runtime.install(app)
    lifecycle.install()
    systemd.install(app)
    if options.json_logs:
        task_logs.install()
    return {}


def _redis_only(result_backend: Any) -> str:
    url = str(result_backend or "")
    return url if url.startswith(("redis:", "rediss:", "sentinel:")) else ""
