"""A steady stream of tasks, like that of a client which does what the API's answers ask for."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import httpx

from tests.api_client import ApiClient

# Seconds after which a client gives up on one request, and pauses before it repeats one.
REQUEST_TIMEOUT = 5.0
PAUSE = 1.0
# Questions per second about what became of tasks: with the load itself less than a balancer lets one client ask.
QUESTIONS = 60
# Seconds after the end of the load in which every request must have been accepted.
TIMEOUT = 30.0


@dataclass
class Load:
    """Sends a task every 1/``rate`` seconds from a thread of its own until it is told to stop."""

    url: str
    key: str = field(repr=False)
    rate: float
    task: str = "example_agent_task"
    accepted: dict[str, float] = field(default_factory=dict)  # task id -> time of the 202
    refused: int = 0  # 429 and 503
    unanswered: int = 0
    wrong: list[str] = field(default_factory=list)  # answers that no client can make sense of
    given_up: int = 0  # requests that were never accepted
    slowest: float = 0.0  # seconds until the slowest answer
    began: float = 0.0
    ended: float = 0.0

    def __enter__(self) -> Self:
        """Begin to send."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send_all()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Send no new tasks, and wait for those that are not accepted yet."""
        self._stop.set()
        self._thread.join()

    async def _send_all(self) -> None:
        self.began = time.time()
        async with (
            httpx.AsyncClient(base_url=self.url, headers={"X-API-Key": self.key}, timeout=REQUEST_TIMEOUT) as client,
            asyncio.TaskGroup() as requests,
        ):
            while not self._stop.is_set():
                requests.create_task(self._send(client))
                await asyncio.sleep(1 / self.rate)
            self.ended = time.time()

    async def _send(self, client: httpx.AsyncClient) -> None:
        key = str(uuid.uuid4())
        while not self.ended or time.time() < self.ended + TIMEOUT:
            begin = time.monotonic()
            with suppress(httpx.TransportError):
                body = {"task": self.task, "data": {"key": key}}
                answer = await client.post("/tasks/enqueue", json=body, headers={"Idempotency-Key": key})
                self.slowest = max(self.slowest, time.monotonic() - begin)
                if answer.status_code == 202:
                    self.accepted.setdefault(answer.json()["task_id"], time.time())
                    return
                if answer.status_code not in {429, 503}:
                    self.wrong.append(f"{answer.status_code}: {answer.text[:100]}")
                    return
                self.refused += 1
                await asyncio.sleep(PAUSE)
                continue
            self.unanswered += 1
            await asyncio.sleep(PAUSE)
        self.given_up += 1


def not_ended(url: str, key: str, ends: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Return what the API answers about each task that has none of its ends; one that is down knows of none."""
    left = dict.fromkeys(ends, "no answer")
    with ApiClient(url, key) as client, suppress(httpx.TransportError):
        for task_id, states in ends.items():
            answer = client.get(f"/tasks/status/{task_id}")
            left[task_id] = answer.text
            if answer.status_code == 200 and answer.json()["status"] in states:
                del left[task_id]
            time.sleep(1 / QUESTIONS)
    return left


def not_successful(url: str, key: str, ids: Iterable[str]) -> dict[str, str]:
    """Return what the API answers about each task that it does not call SUCCESS."""
    return not_ended(url, key, dict.fromkeys(ids, frozenset({"SUCCESS"})))
