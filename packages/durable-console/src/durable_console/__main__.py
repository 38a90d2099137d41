"""The command ``durable-admin``: what an operator does with queues, dead letters and workers."""

import sys

import click
import redis
from kombu.exceptions import OperationalError

from durable_console.admin import canary, celery_command, dead_letters, queues


@click.group()
def group() -> None:
    """Operate an application of celery-durable; the environment says which one."""


group.add_command(queues.group, "queues")
group.add_command(dead_letters.group, "dead-letters")
group.add_command(canary.canary)
group.add_command(celery_command.inspect)
group.add_command(celery_command.control)


def main() -> None:
    """Run the command line."""
    try:
        group(prog_name="durable-admin")
    except (redis.RedisError, OperationalError) as error:
        sys.exit(f"Redis does not answer: {error}")


if __name__ == "__main__":
    main()
