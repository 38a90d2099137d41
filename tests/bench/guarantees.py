"""What each guarantee costs: ``python -m tests.bench.guarantees [--rounds N]``.

Tasks that do nothing, taken by one worker with two processes from a queue that is full beforehand; and requests to one
API process over 64 connections. Every variant runs once in each round; the table shows medians, and the ratio to the
guide's configuration of the same round, because the speed of a shared machine changes from minute to minute.
"""

import asyncio
import secrets
import signal
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import redis
import trustme
from rich.console import Console
from rich.table import Table

from celery_durable.testing import RedisServer, free_port, wait_for
from tests.support import Program, TlsRedisServer

TASKS = 6000
CONNECTIONS = 64
API_KEY = secrets.token_hex(16)
ENQUEUE_SECONDS = 5.0
# Shares of the queue between which the clock runs: neither start-up nor the last few tasks count.
FROM, TO = 0.85, 0.15


@dataclass(frozen=True)
class Variant:
    """One configuration under test."""

    name: str
    app: str = "tests.bench.our_worker"
    api: str = "tests.bench.our_api:app"
    without: str = ""
    split: bool = True  # a Redis of its own for the queue
    fsync: str = "everysec"
    signing_key: str = ""
    tls: bool = False


VARIANTS = (
    Variant("the guide's configuration", app="tests.bench.guide_worker", api="tests.bench.guide_api:app", split=False),
    Variant("ours, with kombu's delivery and no ledger", without="delivery"),
    Variant("+ atomic delivery", without="ledger"),
    Variant("+ ledger of accepted tasks"),
    Variant("+ signed messages", signing_key="k" * 64),
    Variant("+ each write on the disk before the answer", signing_key="k" * 64, fsync="always"),
    Variant("+ Redis over TLS", signing_key="k" * 64, fsync="always", tls=True),
)


@dataclass(frozen=True)
class Measured:
    """One run of one variant."""

    tasks_per_second: float
    commands_per_task: float
    enqueued_per_second: float


def _calls(servers: list[redis.Redis]) -> int:
    """Count the commands that were executed, those inside scripts and transactions included."""
    return sum(
        int(numbers["calls"])
        for server in servers
        for name, numbers in server.info("commandstats").items()
        if name not in {"cmdstat_info", "cmdstat_llen"}  # our own questions
    )


async def _requests(port: int, deadline: float) -> int:
    """Send requests over one connection until ``deadline`` and count those that were accepted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"data": {"key": "value"}}'
    head = f"POST /tasks/enqueue HTTP/1.1\r\nHost: bench\r\nX-API-Key: {API_KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    accepted = 0
    while time.monotonic() < deadline:
        writer.write(f"{head}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        accepted += answer.startswith(b"http/1.1 202")
    writer.close()
    return accepted


async def _load(port: int) -> float:
    deadline = time.monotonic() + ENQUEUE_SECONDS
    return sum(await asyncio.gather(*[_requests(port, deadline) for _ in range(CONNECTIONS)])) / ENQUEUE_SECONDS


def measure_enqueue(variant: Variant, env: dict[str, str], log: Path) -> float:
    """Return the requests per second that one API process accepts."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", variant.api, "--port", str(port), "--no-access-log"]
    # Limits that are never reached, but checked.
    limits = {"QUEUE_MAX_LENGTH": "1000000", "RATE_LIMIT": "1000000/second", "BACKEND_API_KEY": API_KEY}
    api = Program(command, log, {**env, **limits, "LOG_LEVEL": "warning"})
    try:
        wait_for(lambda: _listens(port))
        return asyncio.run(_load(port))
    finally:
        api.stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def measure(variant: Variant, directory: Path) -> Measured:
    """Run one variant from empty servers to an empty queue, then its API without a worker."""
    servers: list[RedisServer] = []
    authority = trustme.CA()
    for name in ("broker", "results") if variant.split else ("shared",):
        fsync = variant.fsync if name == "broker" else "everysec"
        if variant.tls:
            authority.cert_pem.write_to_path(str(directory / "ca.crt"))
            servers.append(TlsRedisServer(directory / name, authority, directory / "ca.crt", appendfsync=fsync))
        else:
            servers.append(RedisServer(directory / name, durable=True, appendfsync=fsync))
    env = {
        "CELERY_BROKER_URL": servers[0].url(0),
        "CELERY_RESULT_BACKEND": servers[-1].url(1),
        "BENCH_WITHOUT": variant.without,
        "TASK_SIGNING_KEY": variant.signing_key,
    }
    code = f"from {variant.app} import tiny\nfor number in range({TASKS}): tiny.delay(number)"
    fill = Program([sys.executable, "-c", code], directory / "fill.log", env)
    if fill.process.wait(300) != 0:
        raise RuntimeError(fill.output())
    command = ["celery", "-A", variant.app, "worker", "--loglevel=warning", "-c", "2"]
    worker = Program([sys.executable, "-m", *command], directory / "worker.log", env)
    broker, clients = servers[0].client(0), [server.client(0) for server in servers]
    try:
        wait_for(lambda: broker.llen("celery") <= FROM * TASKS, seconds=120)
        left, calls, began = broker.llen("celery"), _calls(clients), time.monotonic()
        wait_for(lambda: broker.llen("celery") <= TO * TASKS, seconds=300)
        done = left - broker.llen("celery")
        seconds, calls = time.monotonic() - began, _calls(clients) - calls
        worker.stop(signal.SIGKILL)
        enqueued = measure_enqueue(variant, env, directory / "api.log")
    finally:
        worker.stop(signal.SIGKILL)
        for server in servers:
            server.stop()
    return Measured(done / seconds, calls / done, enqueued)


@click.command()
@click.option("--rounds", default=3, show_default=True, help="How often each variant runs.")
def main(rounds: int) -> None:
    """Measure and print the table."""
    runs: dict[Variant, list[Measured]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant in VARIANTS:
            with tempfile.TemporaryDirectory(prefix="bench") as directory:
                runs[variant].append(measure(variant, Path(directory)))
    table = Table("variant", "tasks/s", "of the guide's", "Redis commands/task", "enqueued/s", "of the guide's")
    for variant, measured in runs.items():
        pairs = list(zip(measured, runs[VARIANTS[0]], strict=True))
        table.add_row(
            variant.name,
            f"{statistics.median(run.tasks_per_second for run in measured):.0f}",
            f"{statistics.median(ours.tasks_per_second / guide.tasks_per_second for ours, guide in pairs):.0%}",
            f"{statistics.median(run.commands_per_task for run in measured):.1f}",
            f"{statistics.median(run.enqueued_per_second for run in measured):.0f}",
            f"{statistics.median(ours.enqueued_per_second / guide.enqueued_per_second for ours, guide in pairs):.0%}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
