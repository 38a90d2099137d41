"""Whether a worker runs tasks: ``durable-admin canary --node default@host``."""

import time

import click
from celery.result import AsyncResult

from celery_durable import snapshot
from celery_durable.connection import broker_client
from celery_durable.entries import printable
from durable_console.admin.diagnosis import TIMEOUT
from durable_console.application import celery_app, options

# Celery's own task, which every worker has: returns its arguments.
TASK = "celery.accumulate"
# Tasks for each worker in a round: idle ones take them in turn.
EACH = 4
# Seconds between two looks.
INTERVAL = 0.2
# The exit code where other workers have run all tasks that were named.
ELSEWHERE = 3


@click.command()
@click.option("--node", required=True, help="The worker's name, like default@host; with IDs also @host for any of it.")
@click.option("--within", default=60.0, show_default=True, help="Seconds for all of it.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
def canary(node: str, within: float, ids: tuple[str, ...]) -> None:
    """Have one worker run a task and return its result.

    A task cannot be addressed to a worker. Its queue gets a few of Celery's own tasks for each worker, and more while
    others have taken all of them. With the IDs of tasks that were sent, one of these must run there; the exit code is 3
    where all ran elsewhere.
    """
    deadline = time.monotonic() + within
    if ids:
        if not _one_ran(node, deadline, [AsyncResult(task_id, app=celery_app) for task_id in ids]):
            click.echo(printable(f"{node} has run none of {len(ids)} tasks: others have."), err=True)
            raise click.exceptions.Exit(ELSEWHERE)
        return
    queue, client = _queue(node), broker_client(options)
    while True:
        several = EACH * max(len(snapshot.look(options, client).workers), 1)
        sent = [celery_app.send_task(TASK, args=("canary",), queue=queue, expires=within) for _ in range(several)]
        if _one_ran(node, deadline, sent):
            return


def _one_ran(node: str, deadline: float, tasks: list[AsyncResult[object]]) -> bool:
    """Wait for the first task that this worker has ended; tell whether there is one, or others have ended all.

    Raises:
        click.ClickException: it failed, or none ended in time.
    """
    waiting = list(tasks)
    while waiting:
        if time.monotonic() > deadline:
            raise click.ClickException(
                printable(
                    f"{node} has run none of {len(tasks)} tasks in time, and {len(waiting)} wait: where tasks wait "
                    "longer than that, give it more time (--within, deploy_gate_seconds)."
                )
            )
        for task in [task for task in waiting if task.ready()]:
            waiting.remove(task)
            worker = str(task.worker)
            if worker == node or (node.startswith("@") and worker.endswith(node)):
                if not task.successful():
                    raise click.ClickException(printable(f"{worker} has run {task.id}: {task.state}."))
                click.echo(printable(f"{worker} has run {task.id}."))
                return True
        time.sleep(INTERVAL)
    return False


def _queue(node: str) -> str:
    """Return a queue that a worker takes from."""
    answers = celery_app.control.inspect(destination=[node], timeout=TIMEOUT).active_queues() or {}
    names = [str(queue["name"]) for queue in answers.get(node) or []]
    if not names:
        raise click.ClickException(printable(f"{node} does not answer, or takes tasks of no queue."))
    return min(names)
