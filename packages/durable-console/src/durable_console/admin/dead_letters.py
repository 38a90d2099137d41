"""The dead letters, for an operator: ``durable-admin dead-letters list|requeue|drop``."""

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import click
import redis

from celery_durable import entries, keys, scripts, signing
from celery_durable.connection import broker_client
from celery_durable.entries import asked, printable, shown
from celery_durable.scripts import run
from celery_durable.task_ids import task_of
from durable_console.application import celery_app, options

BROKEN = "It is no dead letter of ours"

every = click.option("--all", "every", is_flag=True, help="All dead letters.")
ids = click.argument("ids", nargs=-1, metavar="[ID]...")


@click.group()
def group() -> None:
    """Look after messages that no worker will run."""


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, with the whole message.")
def list_letters(as_json: bool) -> None:
    """Show id, time, queue, task and reason of each; the newest first."""
    count = 0
    for _, letter in _letters(_connect()):
        count += 1
        if as_json:
            click.echo(json.dumps(letter))
        else:
            parts = [letter["id"], letter["time"], letter["queue"], letter["task"] or "-", letter["reason"]]
            click.echo("  ".join(map(printable, parts)))
    if not as_json:
        click.echo(f"{count} dead letters.")


@group.command()
@ids
@every
def requeue(ids: tuple[str, ...], every: bool) -> None:
    """Put dead letters back into their queues, as if they had never run.

    What no worker would take stays where it is: a message that was cut, or whose signature is wrong.
    """
    client, stay = _connect(), False
    for raw, letter in _chosen(client, ids, every):
        if problem := _why_not(letter):
            click.echo(f"{printable(letter['id'])} stays a dead letter: {problem}")
            stay = True
            continue
        old = base64.b64decode(letter["message"])
        message, task_id = _as_new(letter["queue"], old)
        if task_id:
            celery_app.backend.forget(task_id)  # the failure that is stored of it
        names = (keys.DEAD_LETTERS, letter["queue"], keys.ACCEPTED)
        try:
            moved = run(client, scripts.MOVE_ANEW, len(names), *names, raw, message, task_id)
        except redis.ResponseError as rejected:
            click.echo(f"{printable(letter['id'])} stays a dead letter: Redis rejects it: {printable(rejected)}")
            stay = True
            continue
        if moved:
            click.echo(f"{printable(letter['id'])} is in the queue {printable(letter['queue'])} again.")
    if stay:
        raise click.exceptions.Exit(1)


@group.command()
@ids
@every
def drop(ids: tuple[str, ...], every: bool) -> None:
    """Delete dead letters for good."""
    client = _connect()
    for raw, letter in _chosen(client, ids, every):
        if client.lrem(keys.DEAD_LETTERS, 1, raw):  # type: ignore[arg-type]  # bytes go as they are
            click.echo(f"{printable(letter['id'])} is deleted.")


def _connect() -> redis.Redis:
    return broker_client(options)


def _letters(client: redis.Redis) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each entry with its letter; for one that is none, with a letter that says so and shows its beginning."""
    stored: list[bytes]
    stored, wrong = asked(lambda: client.lrange(keys.DEAD_LETTERS, 0, -1), [])
    if wrong:
        raise SystemExit(f"The key {keys.DEAD_LETTERS} is no list, so nothing of it can be shown; look who made it.")
    for raw in stored:
        yield raw, entries.letter(raw) or _broken(raw)


def _broken(raw: bytes) -> dict[str, Any]:
    reason = f"{BROKEN}: {shown(raw)}"
    digest = hashlib.sha256(raw).hexdigest()[:32]
    return {"id": digest, "time": "-", "queue": "-", "task": "", "reason": reason, "message": "", "broken": True}


def _why_not(letter: dict[str, Any]) -> str | None:
    """Return why a letter cannot go back into its queue; nothing when it can."""
    if "broken" in letter:
        return f"{BROKEN}."
    if "size" in letter:
        return "It was too large to be kept."
    try:
        message = base64.b64decode(letter["message"], validate=True)
    except ValueError:
        return f"{BROKEN}: its message is not base64."
    return signing.rejection(options, letter["queue"], message)


def _chosen(client: redis.Redis, ids: tuple[str, ...], every: bool) -> list[tuple[bytes, dict[str, Any]]]:
    if bool(ids) == every:
        raise click.UsageError("Name the ids that `list` shows, or give --all.")
    letters = list(_letters(client))
    wanted = set(ids)
    unknown = wanted - {name for _, letter in letters for name in (letter["id"], printable(letter["id"]))}
    if unknown:
        raise click.UsageError(f"There is no dead letter with the id {', '.join(sorted(unknown))}; see `list`.")
    return [(raw, letter) for raw, letter in letters if every or wanted & {letter["id"], printable(letter["id"])}]


def _as_new(queue: str, raw: bytes) -> tuple[bytes | str, str]:
    """Return the message without its history, and its task's id; one that is no message stays as it is."""
    message = signing.parse(raw)
    if message is None:
        return raw, ""
    message["headers"].update(retries=0, redeliveries=0)
    return signing.changed(options, queue, message), task_of(message)
