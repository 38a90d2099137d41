"""Tasks of other kinds beside the load: a canvas, a countdown, a revocation, a rejection and a rate limit."""

from __future__ import annotations

import json
import select
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from tests.chaos.host import ChaosError, Host

# What is sent in each cycle, in this order, and how many tasks each is. A chord's last is its callback.
CYCLE = {"chord": 3, "chain": 2, "rejecting": 1, "limited": 2, "countdown": 1, "revoked": 1}
# Seconds from one cycle to the next, and from the first to the fault: some of its tasks run then, others wait.
PERIOD = 8.0
LEAD = 0.6
# Seconds until the client on the host has followed a command; with the first it may still be starting.
ANSWER = 30.0
SUCCESS, REVOKED = "SUCCESS", "REVOKED"


@dataclass
class Sent:
    """Some tasks that belong together."""

    kind: str
    ids: list[str]
    accepted: list[str] = field(default_factory=list)
    confirmed: float | None = None  # when the client knew that a worker had confirmed the revocation

    @property
    def ends(self) -> frozenset[str]:
        """How each of its tasks may end."""
        if self.kind != "revoked":
            return frozenset({SUCCESS})
        # While no worker listens, nobody can confirm a revocation: whether one has heard it is open.
        return frozenset({REVOKED}) if self.confirmed else frozenset({SUCCESS, REVOKED})


@dataclass
class OtherKinds:
    """Sends one cycle when it is told, and one more each ``PERIOD`` seconds until it is told to end."""

    host: Host
    sent: list[Sent] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Start the client."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._client: subprocess.Popen[str] | None = self.host.start_client()
        return self

    def __exit__(self, *_: object) -> None:
        """Send nothing more, and end the client."""
        self.end()
        self._end_client()

    def end(self) -> None:
        """Send nothing more."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def begin(self) -> None:
        """Send the first cycle, of which everything is accepted, and go on in a thread.

        Raises:
            ChaosError: the client is not there, or something was not accepted although nothing is wrong yet.
        """
        self._send_cycle()
        self._thread.start()
        for sent in self.sent:
            if sent.accepted != sent.ids or (sent.kind == "revoked" and not sent.confirmed):
                raise ChaosError(f"{sent.kind}: not accepted, or not confirmed, before the fault")

    def ends(self) -> dict[str, frozenset[str]]:
        """Return all tasks that were accepted, and how each may end."""
        return {task_id: sent.ends for sent in self.sent for task_id in sent.accepted}

    def _go_on(self) -> None:
        while not self._stop.wait(PERIOD):
            # The host may be down; then nobody sends.
            with suppress(ChaosError, OSError):
                self._client = self._client or self.host.start_client()
                self._send_cycle()

    def _send_cycle(self) -> None:
        for kind, tasks in CYCLE.items():
            sent = Sent(kind, [str(uuid.uuid4()) for _ in range(tasks)])
            self.sent.append(sent)
            answer = self._ask({"kind": kind, "ids": sent.ids})
            sent.accepted = answer["accepted"]
            sent.confirmed = time.time() if answer["confirmed"] else None

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        client = self._client
        assert client
        assert client.stdin
        assert client.stdout
        with suppress(OSError):
            print(json.dumps(command), file=client.stdin, flush=True)
            # It writes a line to each command.
            ready, _, _ = select.select([client.stdout], [], [], ANSWER)
            if ready and (line := client.stdout.readline()):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._end_client()
        raise ChaosError("the Celery client does not answer")

    def _end_client(self) -> None:
        if client := self._client:
            self._client = None
            with suppress(OSError), client:
                client.kill()


def ticks(events: list[dict[str, Any]]) -> list[Sent]:
    """Return what beat has sent: the runs that the broker has are accepted."""
    accepted = {event["id"] for event in events if event["event"] == "sent"}
    runs = [event["id"] for event in events if event["event"] == "planned"]
    return [Sent("tick", [task_id], [task_id] if task_id in accepted else []) for task_id in runs]


def ran_although_revoked(sent: list[Sent], events: list[dict[str, Any]]) -> set[str]:
    """Return the tasks that were started after a worker had confirmed that they are revoked."""
    confirmed = {task_id: each.confirmed for each in sent if each.confirmed for task_id in each.ids}
    starts = (event for event in events if event["event"] == "start")
    return {event["id"] for event in starts if event["time"] > confirmed.get(event["id"], float("inf"))}


def began_too_early(sent: list[Sent], events: list[dict[str, Any]]) -> set[str]:
    """Return the tasks of a canvas that were started before the work of those in front of them was done."""
    started: dict[str, float] = {}
    done: dict[str, float] = {}
    for event in events:
        if (times := {"start": started, "done": done}.get(event["event"])) is not None:
            times.setdefault(event["id"], event["time"])
    early = set()
    for each in sent:
        for task_id, parts in in_front(each).items():
            begin = started.get(task_id, float("inf"))
            if any(done.get(part, float("inf")) > begin for part in parts):
                early.add(task_id)
    return early


def in_front(sent: Sent) -> Mapping[str, list[str]]:
    """Return, for each task that waits for others, those which must be done before it."""
    if sent.kind == "chord":
        return {sent.ids[-1]: sent.ids[:-1]}
    if sent.kind == "chain":
        return {later: [earlier] for earlier, later in zip(sent.ids, sent.ids[1:], strict=False)}
    return {}
