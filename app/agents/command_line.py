"""What differs between Celery's sub-commands when they load the application."""

import logging.config
from pathlib import Path

import click

from app.logs import log_config
from app.settings import get_settings

FLOWER_CONFIG = Path(__file__).parent.parent / "flowerconfig.py"


def prepare() -> None:
    """Give ``celery flower`` JSON logs and our configuration file; do nothing for other commands.

    Flower sends no signal before it configures itself, and it keeps the root logger's handlers when there are some.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.invoked_subcommand != "flower":
        return
    from flower.options import options  # noqa: PLC0415 - only Flower's process needs Flower

    level = get_settings().log_level
    logging.config.dictConfig(log_config("flower", level))
    options.logging = level  # Flower applies it to the root logger
    options.conf = str(FLOWER_CONFIG)
