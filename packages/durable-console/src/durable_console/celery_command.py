"""Celery's command line, for the application of this package."""

import sys
from typing import NoReturn


def run(*arguments: str) -> NoReturn:
    """Become ``celery -A durable_console.application ARGUMENTS``; ends the process."""
    from celery.bin.celery import celery  # noqa: PLC0415 - it reads entry points, which takes long

    # In sys.argv, where Celery and Flower look themselves. Not by app.start, which shows wrong options as a traceback.
    sys.argv = ["celery", "-A", "durable_console.application:celery_app", *arguments]
    sys.exit(celery(prog_name="celery", auto_envvar_prefix="CELERY"))
