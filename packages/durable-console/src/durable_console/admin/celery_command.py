"""Celery's own commands ``inspect`` and ``control``, on this application: signed, and with its destination."""

import click

from durable_console import celery_command

# Everything behind the command's name is Celery's, --help too.
PASS_ON = {"ignore_unknown_options": True, "help_option_names": []}
arguments = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)


@click.command(context_settings=PASS_ON)
@arguments
def inspect(arguments: tuple[str, ...]) -> None:
    """Ask workers, like `inspect active --timeout=5`; `inspect --help` has the rest."""
    celery_command.run("inspect", *arguments)


@click.command(context_settings=PASS_ON)
@arguments
def control(arguments: tuple[str, ...]) -> None:
    """Command workers, like `control pool_grow 2`; `control --help` has the rest."""
    celery_command.run("control", *arguments)
