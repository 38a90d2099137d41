"""Delivery guarantees for Celery on Redis: no accepted task is lost.

``install(app, options)`` gives them to an application. Importing this package alone imports nothing.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

    from celery_durable.options import Options

__version__ = "0.1.0"

# Celery's own, where nothing is configured, is RabbitMQ.
DEFAULT_BROKER = "redis://localhost:6379/0"


def install(app: "Celery[Any]", options: "Options | None" = None) -> None:
    """Give ``app`` the guarantees of docs/reference/delivery-guarantees.md, before ``app.control`` is used.

    Settings of the application stay its own, but for ``worker_consumer``, and for Celery's own way to leave out tasks
    that have succeeded, which goes by their ids.
    """
    from celery.app.task import Task  # noqa: PLC0415

    from celery_durable.options import Options, set_current  # noqa: PLC0415
    from celery_durable.worker import delivery, lifecycle, results, systemd, task_logs, transport  # noqa: PLC0415

    options = options or Options()
    set_current(
        replace(
            options,
            broker_url=options.broker_url or app.conf.broker_url or DEFAULT_BROKER,
            result_url=options.result_url or app.conf.result_backend or "",
        )
    )
    app.control_cls = "celery_durable.control:Control"
    app.conf.worker_consumer = "celery_durable.worker.consumer:Consumer"
    app.conf.worker_deduplicate_successful_tasks = False
    # Not of app.Task: tasks with a base class of their own do not come from it.
    Task.Request = "celery_durable.worker.request:Request"
    transport.install()
    results.install(app)
    delivery.install(app)
    lifecycle.install(app)
    systemd.install(app)
    if options.json_logs:
        task_logs.install()
