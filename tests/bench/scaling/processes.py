"""Processes and Redis servers: how they are started, and what they have used."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from celery_durable.metrics import WORKERS
from celery_durable.testing import RedisServer, wait_for
from tests.support import Api, Program

MIB, GIB = 2**20, 2**30

# As roles/stack/vars/main/roles.yml configures the two.
BROKER = {"appendfsync": "always", "maxmemory_policy": "noeviction"}
RESULTS = {"appendfsync": "everysec", "maxmemory_policy": "allkeys-lru"}


def family(pid: int) -> list[int]:
    """Return a process and all of its descendants."""
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # it has ended
            for child in (thread / "children").read_text().split():
                found += family(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process."""
    # clock_getcpuclockid(3), which Python does not offer: exact where /proc counts in hundredths.
    return time.clock_gettime((~pid << 3) | 2)


def family_cpu(pid: int) -> float:
    """Return the CPU time of a process and its descendants, with that of its children that have ended."""
    ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
    return sum(map(cpu_seconds, family(pid))) + sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")


def family_mib(pid: int) -> float:
    """Return the memory of a process and its descendants; what they share is counted once."""
    texts = (Path(f"/proc/{member}/smaps_rollup").read_text() for member in family(pid))
    return sum(int(text.partition("\nPss:")[2].split()[0]) for text in texts) / 1024


@dataclass(frozen=True)
class Use:
    """What a Redis has done: since its start, or between two looks."""

    seconds: float
    calls: Counter[str]  # those inside scripts and transactions included
    cpu: float
    memory: int
    file: int  # bytes of the append-only file

    def since(self, earlier: "Use") -> "Use":
        """Return what was done between two looks."""
        calls = Counter(self.calls)
        calls.subtract(earlier.calls)
        calls.subtract(("hello", "info"))  # our own
        return Use(
            self.seconds - earlier.seconds,
            +calls,
            self.cpu - earlier.cpu,
            self.memory - earlier.memory,
            self.file - earlier.file,
        )


def look(server: RedisServer) -> Use:
    """Ask a Redis what it has done."""
    info = server.client(0).info("everything")
    calls = {name[8:]: int(told["calls"]) for name, told in info.items() if name.startswith("cmdstat_")}
    cpu = info["used_cpu_user"] + info["used_cpu_sys"]
    return Use(time.monotonic(), Counter(calls), cpu, info["used_memory"], info["aof_current_size"])


def machine_ticks() -> tuple[float, float]:
    """Return the seconds that all processors together were busy, and those that there were."""
    ticks = [
        int(word) / os.sysconf("SC_CLK_TCK") for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    ]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def flush_seconds(directory: Path, times: int = 200) -> float:
    """Return how long the disk takes to flush a small write, as Redis does it for each batch of commands."""
    needed = []
    with (directory / "flushed").open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(b"x" * 1024)
            began = time.monotonic()
            os.fdatasync(file.fileno())
            needed.append(time.monotonic() - began)
    return statistics.median(needed)


class Stack:
    """Broker and results as the roles configure them, and what runs beside them."""

    def __init__(self, directory: Path) -> None:
        """Start the two Redis in a new directory."""
        self.directory = directory
        directory.mkdir(parents=True)
        self._running = ExitStack()
        self.broker = self._redis("broker", **BROKER)
        self.results = self._redis("results", **RESULTS)
        self._programs = 0
        self.env = {
            "CELERY_BROKER_URL": self.broker.url(0),
            "CELERY_RESULT_BACKEND": self.results.url(1),
            "TASK_SIGNING_KEY": "k" * 64,
            # Limits that are never reached, but checked.
            "QUEUE_MAX_LENGTH": "1000000",
            "RATE_LIMIT": "1000000/second",
        }

    def __enter__(self) -> Self:
        """Everything is there already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything, the last first."""
        self._running.close()

    def _redis(self, name: str, **settings: str) -> RedisServer:
        server = RedisServer(self.directory / name, durable=True, maxmemory="1gb", **settings)
        self._running.callback(server.stop)
        return server

    def _log(self) -> Path:
        self._programs += 1
        return self.directory / f"{self._programs}.log"

    def add_replicas(self) -> None:
        """Give the broker two replicas, and wait until they have everything."""
        login = {"password": self.broker.password, "masterauth": self.broker.password}
        for name in ("second", "third"):
            self._redis(name, **BROKER, **login, replicaof=f"127.0.0.1 {self.broker.port}")
        replication = self.broker.client(0)

        def all_are_there() -> bool:
            told = replication.info("replication")
            return all(told.get(f"slave{number}", {}).get("state") == "online" for number in (0, 1))

        wait_for(all_are_there, seconds=30)

    def api(self, **env: str) -> Api:
        """Start an API process."""
        api = Api(self._log(), {**self.env, **env})
        self._running.callback(api.stop)
        return api

    def worker(self, start: Sequence[str], pool: str, slots: int) -> Program:
        """Start a worker; ``start`` is what stands before the word worker."""
        options = ["worker", "--loglevel=info", f"--pool={pool}", "-c", str(slots), "-n", "bench@%h"]
        worker = Program([sys.executable, *start, *options], self._log(), self.env, stderr=subprocess.STDOUT)
        self._running.callback(worker.stop, timeout=90)  # longer than any of its tasks may run
        return worker

    def busy(self) -> int:
        """Return how many tasks run, as the workers report it."""
        reports: list[Any] = self.broker.client(0).hvals(WORKERS)
        return sum(int(json.loads(report.partition(" ")[2])["busy"]) for report in reports)
