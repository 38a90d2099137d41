"""The command ``durable-flower``: Celery's ``flower`` on this application, with our configuration and JSON logs."""

import logging.config
import sys
from pathlib import Path

from flower.options import options

from celery_durable.logs import log_config
from celery_durable.web.access_log import bounded
from durable_console import celery_command
from durable_console.flower.settings import Settings

CONFIG = Path(__file__).with_name("config.py")


def main() -> None:
    """Run Flower with the options of the command line, which come after ours."""
    # Secret files are in the environment when this is loaded.
    level = Settings.from_environment().log_level
    # Flower sends no signal before it configures itself, and it keeps the root logger's handlers when there are some.
    logging.config.dictConfig(bounded(log_config("flower", level)))
    options.logging = level  # Flower applies it to the root logger
    celery_command.run("flower", f"--conf={CONFIG}", *sys.argv[1:])


if __name__ == "__main__":
    main()
