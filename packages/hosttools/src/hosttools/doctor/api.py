"""What answers over HTTP: the API, the console and Flower."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from hosttools import files, systemd, web
from hosttools.doctor.checks import apart
from hosttools.doctor.reasons import because, listener
from hosttools.doctor.workers import questions, queue_names
from hosttools.findings import CRITICAL, FILES, LATER, QUEUES, UNITS, WARNING, WORKERS, Finding

WAITING, OLD_TASK, LONG_QUEUE, STUCK_MARGIN = 30, 120, 100, 60  # seconds, seconds, tasks, seconds
# What says that the API lives, is ready, and that workers answer.
PATHS = ("/health", "/health/ready", "/health/celery")
# What redirects HTTP to HTTPS answers as it does behind a balancer that ends TLS.
HEADERS = {"X-Forwarded-Proto": "https"}


def check(url: str, key_file: str, hard_limit: int, app: str, paths: Sequence[str] = PATHS) -> Iterator[Finding]:
    """Look at the API, and at what it says of queues and workers.

    Args:
        url: where it listens.
        key_file: has its key; empty where it has none, and no metrics of the platform.
        hard_limit: of tasks, in seconds.
        app: the installation's name.
        paths: what says that it lives, is ready, and that workers answer; an empty one is not asked.
    """
    alive_path, ready_path, workers_path = paths
    keys = files.keys(key_file) if key_file else []
    headers = {**HEADERS, "X-API-Key": keys[0]} if keys else HEADERS
    if key_file and not keys:
        yield Finding(CRITICAL, f"the API has no key ({key_file})", "ApiDown", FILES)
    # Its socket would start it, and nobody would see that it was stopped.
    if systemd.active(f"{app}-api.service") in ("inactive", "failed"):
        return
    status, body = web.ask(f"{url}{alive_path or '/'}", headers)
    if status != 200 if alive_path else not status:
        why = listener(urlsplit(url).port or 80, f"{app}-api") or because(f"{app}-api")
        what = f"the API does not answer at {url} ({web.words(status, body)}){why}"
        yield Finding(CRITICAL, what, "ApiDown", UNITS)
        return
    status, body = web.ask(f"{url}{ready_path}", headers) if ready_path else (200, "")
    if status != 200:
        fails = "does not reach the broker" if key_file else f"is not ready: {ready_path}"
        what = f"the API {fails} ({web.words(status, body)})"
        yield Finding(CRITICAL, what, "BrokerUnreachable" if key_file else "ApiDown", UNITS)
        return
    if key_file:
        shown = Shown("the API", url, key_file, workers_path, "ApiDown")
        yield from metrics(shown, hard_limit, app)


@apart
def console(url: str, hard_limit: int, app: str) -> Iterator[Finding]:
    """Look at the console of an application that has no metrics of the platform, and at what it says."""
    status, body = web.ask(f"{url}/health", {})
    if status != 200:
        why = listener(urlsplit(url).port or 80, f"{app}-console") or because(f"{app}-console")
        what = f"the console does not answer at {url} ({web.words(status, body)}){why}"
        yield Finding(CRITICAL, what, "TargetDown", LATER)
        return
    key_file = f"/etc/{app}/secrets/console/BACKEND_API_KEY"
    yield from metrics(Shown("the console", url, key_file, "/health/celery", "TargetDown"), hard_limit, app)


@dataclass(frozen=True)
class Shown:
    """A service that has the platform's metrics, and the page that helps when it answers wrong."""

    name: str
    url: str
    key_file: str
    workers_path: str  # says that workers answer; an empty one is not asked
    runbook: str


def metrics(service: Shown, hard_limit: int, app: str) -> Iterator[Finding]:
    """Look at what a service says of queues and workers, and of tasks with this hard limit in seconds."""
    name, url, key_file, runbook = service.name, service.url, service.key_file, service.runbook
    keys = files.keys(key_file)
    headers = {"X-API-Key": keys[0]} if keys else {}
    status, page = web.ask(f"{url}/metrics", headers)
    if status != 200:
        what = f"{name} answers the key of {key_file} with {status}: it runs with another one, restart it"
        yield Finding(CRITICAL, what if keys else f"{name} answers with {web.words(status, page)}", runbook, UNITS)
        return
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if line[:1] not in ("", "#")]
    figures = {name: float(value) for name, value in lines}
    if figures.get("celery_broker_up") == 0:
        what = f"{name} cannot read the queues: Redis broker refuses it something, or a key is not what it should be"
        yield Finding(CRITICAL, what, "RedisDenies", UNITS)
        return
    alive, expected = figures.get("celery_workers_alive", 0), figures.get("celery_workers_expected", 0)
    if alive == 0:
        yield Finding(CRITICAL, "no worker is alive", "NoWorkers", QUEUES)
    elif service.workers_path and web.ask(f"{url}{service.workers_path}", headers)[0] != 200:
        yield Finding(CRITICAL, "no worker answers", "NoWorkers", QUEUES)
    elif alive < expected:
        yield Finding(WARNING, f"{alive:.0f} of {expected:.0f} workers are alive", "WorkersMissing", QUEUES)
    if figures.get("celery_beat_active") == 0:
        yield Finding(CRITICAL, "no beat holds the lease, nothing periodic is sent", "BeatMissing", QUEUES)
    yield from tasks(figures, hard_limit, app)


def flower(url: str, app: str) -> Iterator[Finding]:
    """Look whether Flower answers; without a password it must refuse."""
    status, body = web.ask(url, {})
    if status == 0 or status >= 500:
        why = listener(urlsplit(url).port or 80, f"{app}-flower") or because(f"{app}-flower")
        what = f"Flower does not answer at {url} ({web.words(status, body)}){why}"
        yield Finding(CRITICAL, what, "UnitRestartLoop", LATER)


@apart
def tasks(figures: dict[str, float], hard_limit: int, app: str) -> Iterator[Finding]:
    """Judge what the API says of queues and of tasks in flight."""
    yield from lengths(figures, app)
    waits = {
        name.partition('"')[2].rpartition('"')[0]: age
        for name, age in figures.items()
        if name.startswith("celery_queue_oldest_seconds") and age > WAITING
    }
    yield from unserved(app, sorted(waits)) if waits and figures.get("celery_workers_alive") else ()
    for queue, age in waits.items():
        if age > OLD_TASK:
            yield Finding(WARNING, f"a task has waited for {age:.0f} s in {queue}", "QueueTooOld", QUEUES)
    if figures.get("celery_unacknowledged_oldest_seconds", 0) > hard_limit + STUCK_MARGIN:
        held = figures["celery_unacknowledged_oldest_seconds"]
        yield Finding(CRITICAL, f"a task has been in flight for {held:.0f} s", "TaskStuck", QUEUES)
    if deferred := sum(number for name, number in figures.items() if name.startswith("celery_deferred_tasks")):
        resume = "playbooks/runbooks/queue_backlog.yml -e operation=resume -e confirm=yes puts them back"
        yield Finding(WARNING, f"{deferred:.0f} tasks are deferred; {resume}", "", QUEUES)
    if letters := figures.get("celery_dead_letters", 0):
        yield Finding(WARNING, f"{letters:.0f} dead letters", "DeadLetters", QUEUES)


@apart
def lengths(figures: dict[str, float], app: str) -> Iterator[Finding]:
    """Look whether queues are full, so that the API refuses tasks, or long."""
    limit = int(files.settings(f"/etc/{app}/backend.env").get("QUEUE_MAX_LENGTH", 0))
    for name, length in figures.items():
        if not name.startswith("celery_queue_length"):
            continue
        queue = name.partition('"')[2].rpartition('"')[0]
        if limit and length >= limit:
            what = f"the queue {queue} is full, the API refuses tasks: {length:.0f} wait (QUEUE_MAX_LENGTH {limit})"
            yield Finding(CRITICAL, what, "BacklogGrowing", QUEUES)
        elif length > LONG_QUEUE:
            # No page: a runbook that has repaired a backlog does not wait until it is gone.
            yield Finding(WARNING, f"{length:.0f} tasks wait in {queue}", "", QUEUES)


@apart
def unserved(app: str, queues: list[str]) -> Iterator[Finding]:
    """Name the queues where tasks wait, and from which no worker takes."""
    taken = {queue for _, answer in questions(app, "active_queues") for queue in queue_names(answer)}
    for queue in queues if taken else ():
        if queue not in taken:
            what = f"tasks wait in the queue {queue}, but no worker takes from it (workers take from {sorted(taken)})"
            yield Finding(CRITICAL, what, "QueueTooOld", WORKERS)
