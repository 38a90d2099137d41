"""A Celery application without tasks, made of the environment alone: ``celery -A durable_console.application ...``.

It has the broker, results, keys and limits of the application that is operated, and imports nothing of it.
"""

import os
import re

from celery import Celery

import celery_durable
from celery_durable import secret_files
from celery_durable.options import OptionError, Options, Variables, number, options_of, read

LOCAL = "redis://localhost:6379"


def _rate(value: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?(/[smh])?", value):
        raise ValueError
    return value


# What the commands need to know of the application's tasks, which are not there to be asked.
VARIABLES: Variables = {
    "DURABLE_TASK_TIME_LIMIT": ("task_time_limit", number(1), "seconds, at least 1"),
    "DURABLE_TASK_SOFT_TIME_LIMIT": ("task_soft_time_limit", number(1), "seconds, at least 1"),
    "DURABLE_TASK_RATE_LIMIT": ("task_default_rate_limit", _rate, "a number of tasks, or one per time like 100/m"),
    "DURABLE_RESULT_EXPIRES": ("result_expires", number(1), "seconds, at least 1"),
    "DURABLE_DEFAULT_QUEUE": ("task_default_queue", str, "a name"),
}


def make() -> Celery:
    """Return the application.

    Raises:
        SystemExit: a variable has a wrong value; the message is one sentence that holds no secret.
    """
    try:
        secret_files.load(os.environ)
        options, conf = Options.from_environment(), read(VARIABLES, os.environ)
    except OptionError as error:
        raise SystemExit(str(error)) from None
    # Whatever CELERY_LOADER says: that would install the library once more.
    app = Celery("durable-console", loader="app")
    app.conf.update(
        broker_url=os.environ.get("CELERY_BROKER_URL") or f"{LOCAL}/0",
        result_backend=os.environ.get("CELERY_RESULT_BACKEND") or f"{LOCAL}/1",
        # What a command stores of a task, the application reads.
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        timezone="UTC",
        worker_hijack_root_logger=False,
        **conf,
    )
    celery_durable.install(app, options)
    # Loads the configuration, and the library with it: commands ask for the options before anything of Celery's.
    app.finalize()
    return app


celery_app = make()
options = options_of(celery_app)
