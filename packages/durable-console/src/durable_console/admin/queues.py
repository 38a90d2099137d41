"""The queues, for an operator: ``durable-admin queues COMMAND``.

list, examine, gone, stuck and find only look. Those that move messages need a worker's Redis user:
playbooks/runbooks/queue_backlog.yml, stuck_task.yml and unacknowledged.yml take it.
"""

import json
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import cast

import click
import redis
from celery import chord, states
from celery.exceptions import TaskRevokedError, Terminated
from celery.exceptions import TimeoutError as NoResultError
from celery.result import GroupResult

from celery_durable import dead_letter, keys, scripts, signing, snapshot
from celery_durable.connection import broker_client, results_client
from celery_durable.entries import asked, printable
from celery_durable.redelivery import LEASE_MARGIN
from celery_durable.scripts import run
from celery_durable.worker.redelivery import Redelivery
from durable_console.admin.diagnosis import dead_workers, queue_backlog, stuck_tasks, task_search
from durable_console.application import celery_app, options

# Messages that one step reads or moves: they may be large, and Redis does nothing else meanwhile.
BATCH = 100
# A message can be overlooked when workers take others at the same time; what is left after that many looks is new.
PASSES = 3

# Seconds after which busy workers are not waited for.
BUSY_AFTER = 10

Wanted = Callable[[str, bytes], bool]  # queue, message

kind = click.option("--task", required=True, metavar="NAME", help="Name of the task, as `list` shows it.")
as_reason = click.option("--reason", default="An operator ended it.", show_default=True, help="What its status says.")


@click.group()
def group() -> None:
    """Look after the messages that wait, and those that workers hold."""


@group.command("list")
def list_queues() -> None:
    """Show what waits, is deferred and in flight, by queue and kind of task."""
    for line in snapshot.look(options, _connect()).lines():
        click.echo(line)


@group.command()
@click.option("--seconds", default=5.0, show_default=True, help="Time between two looks.")
def examine(seconds: float) -> None:
    """Look twice and say, as JSON, whether there is a backlog, why, and what helps."""
    client = _connect()
    first = snapshot.look(options, client)
    time.sleep(seconds)
    click.echo(json.dumps(queue_backlog.backlog(first, snapshot.look(options, client), celery_app)))


@group.command()
@click.option("--host", "hosts", multiple=True, help="A host that could be asked which workers run.")
@click.option("--running", multiple=True, metavar="NODE", help="A worker that runs there.")
@click.option("--declared", default="", metavar="NODE", help="A worker that is known to be dead.")
def gone(hosts: tuple[str, ...], running: tuple[str, ...], declared: str) -> None:
    """Say, as JSON, which workers are dead and hold tasks."""
    click.echo(json.dumps(dead_workers.gone(snapshot.held(options, _connect()), hosts, running, declared)))


@group.command()
@click.argument("task_id", metavar="[ID]", default="")
def stuck(task_id: str) -> None:
    """Say, as JSON, which tasks run for too long or kill their workers, or what one task does."""
    click.echo(json.dumps(stuck_tasks.stuck(snapshot.look(options, _connect()), celery_app, task_id)))


@group.command()
@click.argument("task_id", metavar="ID")
def find(task_id: str) -> None:
    """Say in one sentence what became of a task, as JSON."""
    found = task_search.find(_connect(), results_client(options), celery_app, task_id)
    click.echo(json.dumps(found))


@group.command()
@kind
def defer(task: str) -> None:
    """Put the waiting tasks of one kind aside. They stay accepted, and run after `resume`."""
    client = _connect()
    for queue in snapshot.queues(options, client):
        moved = _move(client, queue, queue, keys.deferred_list(queue), _is(task))
        click.echo(printable(f"{moved} tasks of {queue} are deferred."))


@group.command()
@click.option("--task", metavar="NAME", help="Only those of this kind.")
def resume(task: str | None) -> None:
    """Put deferred tasks back into their queues, behind what waits there now."""
    client = _connect()
    for queue in snapshot.queues(options, client):
        # Without a kind everything goes back: what no worker wants becomes a dead letter there.
        wanted = _is(task) if task else lambda *_: True
        moved = _move(client, queue, keys.deferred_list(queue), queue, wanted)
        click.echo(printable(f"{moved} tasks are in {queue} again."))


@group.command()
@kind
@as_reason
def drop(task: str, reason: str) -> None:
    """End the waiting and the deferred tasks of one kind: their status becomes REVOKED. What runs goes on."""
    client = _connect()
    for queue in snapshot.queues(options, client):
        deferred = keys.deferred_list(queue)

        def end(messages: list[bytes], queue: str = queue, deferred: str = deferred) -> int:
            for raw in messages:
                task_id = _id(queue, raw)
                celery_app.backend.store_result(task_id, TaskRevokedError(reason), states.REVOKED)
                run(client, scripts.ACKNOWLEDGE, 2, deferred, keys.ACCEPTED, raw, task_id)
            return len(messages)

        # Among the deferred no worker takes them, and each keeps its message until its status is stored.
        _move(client, queue, queue, deferred, _is(task))
        ended = _work_off(client, queue, deferred, _is(task), end)
        click.echo(printable(f"{ended} tasks of {queue} are ended."))


@group.command("dead-letter")
@click.argument("task_id", metavar="ID")
@as_reason
def dead_letter_task(task_id: str, reason: str) -> None:
    """Make a task a dead letter, wherever its message lies: its status becomes FAILURE.

    A worker that runs it goes on: kill that worker afterwards.
    """
    client, found = _connect(), 0

    def is_it(queue: str, raw: bytes) -> bool:
        return _id(queue, raw) == task_id

    for name, queue in snapshot.lists(options, client):
        if name == queue:
            # Where no worker takes it from; the list of the deferred comes next.
            _move(client, queue, queue, keys.deferred_list(queue), is_it)
            continue

        def put_aside(messages: list[bytes], name: str = name, queue: str = queue) -> int:
            names = (name, keys.DEAD_LETTERS, keys.ACCEPTED)
            for raw in messages:
                celery_app.backend.store_result(task_id, Terminated(reason), states.FAILURE)
                letter = dead_letter.arguments(options, queue, raw, reason)
                run(client, scripts.DEAD_LETTER, len(names), *names, *letter)
                click.echo(printable(f"{task_id} was in {name} and is a dead letter now."))
            return len(messages)

        found += _work_off(client, queue, name, is_it, put_aside)
    if not found:
        raise click.UsageError(f"No message of task {task_id} lies in the broker; see `find`.")


@group.command()
@click.argument("node")
def reclaim(node: str) -> None:
    """Put back what a worker held that is gone for good; NODE is its name, like default@host.

    If it does run still, its tasks run twice.
    """
    client = _connect()
    held = [held for held in snapshot.held(options, client) if held.node == node]
    if not held:
        raise click.UsageError(f"{node} holds nothing; see `list`.")
    if any(silent.silent <= LEASE_MARGIN for silent in held):
        raise click.UsageError(f"{node} has sent a heartbeat within the last {LEASE_MARGIN} s; nothing is taken.")
    for entry in held:
        count = Redelivery(celery_app, client).take_over(entry.name)
        click.echo(printable(f"{count} tasks of {entry.queue} are in their queue again, and not in flight at {node}."))


@group.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def move(source: str, target: str) -> None:
    """Move what waits in one queue, or is deferred, behind what waits in another one.

    What is no message of ours becomes a dead letter. What workers hold of the queue ends there.
    """
    client = _connect()
    if target == source or target not in options.queues:
        raise click.UsageError(f"{target} is not another queue of this installation; see `list`.")
    for name, destination in ((source, target), (keys.deferred_list(source), keys.deferred_list(target))):

        def carry(messages: list[bytes], name: str = name, destination: str = destination) -> int:
            for raw in messages:
                message = snapshot.ours(options, source, raw)
                if message is None:
                    reason = signing.rejection(options, source, raw) or signing.MALFORMED
                    names = (name, keys.DEAD_LETTERS, keys.ACCEPTED)
                    letter = dead_letter.arguments(options, source, raw, reason)
                    run(client, scripts.DEAD_LETTER, len(names), *names, *letter)
                    click.echo(printable(f"An entry of {name} is a dead letter now: {reason}"))
                    continue
                # Where a retry goes.
                message["properties"]["delivery_info"]["routing_key"] = target
                names = (name, destination, keys.ACCEPTED)
                run(client, scripts.MOVE_ANEW, len(names), *names, raw, signing.changed(options, target, message), "")
            return len(messages)

        moved = _work_off(client, source, name, lambda *_: True, carry)
        click.echo(printable(f"{moved} entries of {name} are taken out; tasks among them are in {destination}."))


@group.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@click.option("--within", default=60.0, show_default=True, help="Seconds for all of it.")
def probe(names: tuple[str, ...], within: float) -> None:
    """Send a task through each queue, and a chord over all of them; fail unless every result comes back.

    Where all workers of a queue are busy with other tasks, that is no failure.
    """
    client = _connect()
    task = celery_app.tasks["celery.accumulate"]  # Celery's own: returns its arguments
    queues = names if len(names) > 1 else names * 2  # Celery makes a chain of a chord with one part
    marks = [f"{queue} {secrets.token_hex(8)}" for queue in queues]
    header = [task.si(mark).set(queue=queue) for queue, mark in zip(queues, marks, strict=True)]
    sent = chord(header)(task.s().set(queue=queues[0]))
    parts = cast("GroupResult", sent.parent)
    deadline = time.monotonic() + within
    while True:
        try:
            found = sent.get(timeout=min(BUSY_AFTER, max(deadline - time.monotonic(), 0)))
            break
        except NoResultError:
            children = zip(queues, parts.children or [], strict=True)
            missing = list(dict.fromkeys(queue for queue, part in children if not part.ready()))
            look, late = snapshot.look(options, client), missing or [queues[0]]
            if all(look.is_busy(queue) for queue in late):
                click.echo(printable(f"Not proven: all workers of {', '.join(late)} are busy with earlier tasks."))
                return
            if time.monotonic() > deadline:
                what = f"a task of the queue {late[0]}" if missing else "the end of a chord"
                raise click.ClickException(printable(f"No result of {what} came within {within:.0f} s.")) from None
    if found != [[[mark] for mark in marks]]:
        raise click.ClickException(printable(f"The chord's result is not what was sent: {found}"))
    parts.forget()
    sent.forget()
    click.echo(printable(f"A task went through each of {', '.join(names)}, and a chord over all of them."))


def _connect() -> redis.Redis:
    return broker_client(options)


def _is(task: str) -> Wanted:
    return lambda queue, raw: (
        (message := snapshot.ours(options, queue, raw)) is not None and message["headers"]["task"] == task
    )


def _id(queue: str, raw: bytes) -> str:
    message = snapshot.ours(options, queue, raw)
    return message["headers"].get("id", "") if message else ""


def _move(client: redis.Redis, queue: str, source: str, target: str, wanted: Wanted) -> int:
    """Move messages of ``queue`` between two lists, the oldest first, while workers take others; return how many."""

    def move(messages: list[bytes]) -> int:
        return int(run(client, scripts.MOVE, 2, source, target, *messages))

    total = 0
    for _ in range(PASSES):
        moved = _work_off(client, queue, source, wanted, move)
        total += moved
        if not moved:
            break
    return total


def _work_off(client: redis.Redis, queue: str, name: str, wanted: Wanted, take: Callable[[list[bytes]], int]) -> int:
    """Let ``take`` take the wanted messages out of a list, the oldest first; return how many it has taken."""
    taken = kept = 0
    while True:
        chunk: list[bytes]
        chunk, _ = asked(partial(client.lrange, name, -kept - BATCH, -kept - 1), [])
        if not chunk:
            return taken
        chosen = [raw for raw in reversed(chunk) if wanted(queue, raw)]
        if chosen:
            taken += take(chosen)
        kept += len(chunk) - len(chosen)
