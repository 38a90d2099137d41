"""``celery-durable check -A PROJECT``: which guarantees an application gets, and which not, before it is deployed."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import click
from celery import Celery
from celery.app.utils import find_app

from celery_durable.queue_names import RULE, is_queue_name

# What the library was tested with: it reaches into parts of them that are not public.
VERSIONS = {"celery": "5.7.", "kombu": "5.7.", "redis": "8."}
REDIS = ("redis:", "rediss:", "sentinel:", "redis+", "rediss+")


@dataclass(frozen=True)
class Finding:
    """One sentence, and how much it matters."""

    level: Literal["ok", "degrades", "breaks"]
    sentence: str


def findings(app: Any) -> Iterator[Finding]:
    """Yield what holds for ``app``, whose configuration is loaded here."""
    for package, wanted in VERSIONS.items():
        found = version(package)
        good = found.startswith(wanted)
        yield Finding(
            "ok" if good else "breaks", f"{package} is {found}" + ("" if good else f", and must be {wanted}*.")
        )
    conf = app.conf
    if not str(conf.broker_url or "").startswith(REDIS):
        yield Finding(
            "breaks",
            f"The broker is {str(conf.broker_url).partition(':')[0]}, and must be Redis: set CELERY_BROKER_URL, which "
            "Celery prefers to the code.",
        )
    if conf.broker_transport_options.get("global_keyprefix"):
        yield Finding("breaks", "broker_transport_options has a global_keyprefix, which the lists of workers ignore.")
    yield from _of_queues(app)
    yield from _of_tasks(app)
    backend = str(conf.result_backend or "")
    if not backend.startswith(REDIS):
        yield Finding(
            "degrades",
            f"Results are in {backend.partition(':')[0] or 'no backend'}: a task that came back after its worker died "
            "runs again, also where it had succeeded an instant before.",
        )


def _of_queues(app: Any) -> Iterator[Finding]:
    names = sorted({*app.amqp.queues, app.conf.task_default_queue})
    yield Finding("ok", f"Queues: {', '.join(names)}; the default one is {app.conf.task_default_queue}.")
    for name in names:
        if not is_queue_name(name):
            yield Finding("breaks", f"The queue {name!r} {RULE}.")
    for name, queue in app.amqp.queues.items():
        if getattr(queue.exchange, "type", "") == "fanout":
            yield Finding("degrades", f"The queue {name} is a broadcast: its messages are neither kept nor signed.")
    if app.conf.task_queue_max_priority:
        yield Finding("degrades", "task_queue_max_priority changes nothing: give urgent tasks a queue of their own.")


def _of_tasks(app: Any) -> Iterator[Finding]:
    own = {name: task for name, task in app.tasks.items() if not name.startswith("celery.")}
    yield Finding("ok", f"{len(own)} tasks.")
    early = sorted(name for name, task in own.items() if not task.acks_late)
    if early:
        yield Finding("degrades", f"Run at most once, by their acks_late: {', '.join(early)}.")
    unlimited = sorted(name for name, task in own.items() if not (task.time_limit or app.conf.task_time_limit))
    if unlimited:
        yield Finding(
            "degrades",
            "Without a time limit, so that workers of other hosts take them an hour after their worker died: "
            f"{', '.join(unlimited)}.",
        )
    urgent = sorted(name for name, task in own.items() if task.priority)
    if urgent:
        yield Finding("degrades", f"Their priority changes nothing: {', '.join(urgent)}.")


def loaded(name: str) -> Any:
    """Return the application that ``celery -A`` would take.

    Raises:
        ClickException: with one sentence where there is none.
    """
    try:
        app = find_app(name)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"-A {name} needs the module {error.name}, which cannot be found from {Path.cwd()}: run this where"
            f" `celery -A {name}` works, with its PYTHONPATH and in its environment."
        ) from None
    if not isinstance(app, Celery):
        raise click.ClickException(
            f"-A {name} is a {type(app).__name__}: name the Celery application, like {name}:celery."
        )
    return app


@click.command(name="celery-durable check")
@click.option("-A", "--app", "name", required=True, metavar="PROJECT", help="The application, as for `celery -A`.")
@click.option("--json", "as_json", is_flag=True, help="A list of findings.")
def main(name: str, as_json: bool) -> None:
    """Say which guarantees an application gets; end with 1 when something breaks."""
    app = loaded(name)
    app.finalize()
    app.loader.import_default_modules()
    found = [*findings(app)]
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        for finding in found:
            click.echo(f"{finding.level:9} {finding.sentence}")
    if any(finding.level == "breaks" for finding in found):
        raise click.exceptions.Exit(1)
