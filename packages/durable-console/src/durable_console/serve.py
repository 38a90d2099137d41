"""The command ``durable-console``."""

import sys

import click

from celery_durable.options import OptionError


@click.group()
def group() -> None:
    """Show the state of an application of celery-durable; the environment says which one."""


@group.command()
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8010, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
def serve(bind: str, port: int) -> None:
    """Serve /metrics, /status, /health/celery, and take the alerts of Alertmanager."""
    try:
        from durable_console.web import server  # noqa: PLC0415 - the command's help needs none of it
    except ModuleNotFoundError as error:
        sys.exit(f"durable-console serve needs {error.name}: install durable-console[web].")
    try:
        server.serve(bind, port)
    except OptionError as error:
        sys.exit(str(error))


def main() -> None:
    """Run the command line."""
    group(prog_name="durable-console")


if __name__ == "__main__":
    main()
