"""Whether a worker runs tasks: ``durable-admin canary --node default@host``."""

import time

import click
from celery import states
from celery.result import AsyncResult

from celery_durable import snapshot
from celery_durable.connection import broker_client
from celery_durable.entries import printable
from celery_durable.options import current
from durable_console.application import celery_app

# Celery's own task, which every worker has: returns its arguments.
TASK = "celery.accumulate"
# Tasks for each worker in a round: idle ones take them in turn.
EACH = 4
# Seconds between two looks, and between two rounds.
INTERVAL = 0.2


@click.command()
@click.option("--node", required=True, help="The worker's name, like default@host.")
@click.option("--within", default=60.0, show_default=True, help="Seconds for all of it.")
def canary(node: str, within: float) -> None:
    """Have one worker run a task and return its result.

    A task cannot be addressed to a worker: its queue gets some for each, and more while others have taken all of them.
    """
    client, deadline, sent = broker_client(current()), time.monotonic() + within, 0
    queue = _queue(node)
    while True:
        several = EACH * max(len(snapshot.look(client).workers), 1)
        waiting: list[AsyncResult[object]] = [
            celery_app.send_task(TASK, args=("canary",), queue=queue, expires=within) for _ in range(several)
        ]
        sent += several
        while waiting and time.monotonic() < deadline:
            for task in [task for task in waiting if task.ready()]:
                waiting.remove(task)
                state, worker = task.state, str(task.worker)
                task.forget()
                if worker == node:
                    if state != states.SUCCESS:
                        raise click.ClickException(printable(f"{node} has run {task.id}: {state}."))
                    for other in waiting:
                        other.forget()
                    click.echo(printable(f"{node} has run {task.id} of the queue {queue}."))
                    return
            time.sleep(INTERVAL)
        if time.monotonic() >= deadline:
            raise click.ClickException(
                printable(
                    f"{node} has run none of {sent} tasks of the queue {queue} within {within:.0f} s, and "
                    f"{len(waiting)} wait: where tasks wait longer than that, give it more time."
                )
            )


def _queue(node: str) -> str:
    """Return a queue that a worker takes from."""
    answers = celery_app.control.inspect(destination=[node], timeout=snapshot.PATIENCE).active_queues() or {}
    names = [str(queue["name"]) for queue in answers.get(node) or []]
    if not names:
        raise click.ClickException(printable(f"{node} does not answer, or takes tasks of no queue."))
    return min(names)
