"""A Redis that is full: what clients send for thousands of tasks a second, without the clients' own work."""

import re
import selectors
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from app.agents.config import DEFAULT_QUEUE
from celery_durable.keys import ACCEPTED
from celery_durable.scripts import ACKNOWLEDGE, ENQUEUE
from celery_durable.testing import RedisServer
from tests.bench.scaling.costs import ApiCosts, Tiny
from tests.bench.scaling.processes import Stack, Use, look

# Workers that the replay plays, a connection each; and the API's connections, each with a batch under way.
UNITS = (8, 32, 128)
PUBLISHERS, BATCH = 4, 16
# Slots that store their results, a connection each.
STORERS = 64


# Sends a request, with the number of replies that it gets, or None to be asked again a moment later; receives them.
Cycle = Generator[tuple[bytes, int] | None, bytes, None]


def _command(*words: bytes | str | int) -> bytes:
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)


def _reply_ends(buffer: bytes, start: int) -> int:
    """Return where the reply that begins at ``start`` ends, -1 if it is not complete."""
    line = buffer.find(b"\r\n", start)
    if line < 0:
        return -1
    kind, text, end = buffer[start : start + 1], buffer[start + 1 : line], line + 2
    if kind == b"-":
        raise RuntimeError(f"Redis refuses: {text.decode()}")
    if kind == b"$" and int(text) >= 0:
        end += int(text) + 2
        return end if end <= len(buffer) else -1
    if kind == b"*":
        for _ in range(int(text)):
            end = _reply_ends(buffer, end)
            if end < 0:
                break
    return end


class Connection:
    """A client of Redis that goes round its cycle, without pause."""

    def __init__(self, server: RedisServer, cycle: Cycle) -> None:
        """Connect, and send the first request."""
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(_command("AUTH", server.password))
        self.socket.recv(64)
        self._cycle, self._buffer, self._open = cycle, b"", 0
        self._send(next(cycle))

    @property
    def parked(self) -> bool:
        """Tell whether the cycle had nothing to send."""
        return self._open == 0

    def ask_again(self) -> None:
        """Go on with a cycle that had nothing to send."""
        self._send(next(self._cycle))

    def read(self) -> None:
        """Take what has come; send the next request when the replies are complete."""
        self._buffer += self.socket.recv(1 << 18)
        end = 0
        for _ in range(self._open):
            end = _reply_ends(self._buffer, end)
            if end < 0:
                return
        replies, self._buffer = self._buffer, b""
        self._send(self._cycle.send(replies))

    def _send(self, request: tuple[bytes, int] | None) -> None:
        self._open = request[1] if request else 0
        if request:
            self.socket.sendall(request[0])


@dataclass
class Mix:
    """Counts what goes through a broker that is full: enqueued, taken, acknowledged."""

    message: bytes
    task_id: bytes
    room: int  # messages that may wait
    enqueued: int = 0
    done: int = 0

    def publisher(self) -> Cycle:
        """What the API sends: batches of tasks."""
        while True:
            count = min(BATCH, self.room - self.enqueued + self.done)
            if count <= 0:
                yield None
                continue
            requests = []
            for _ in range(count):
                own = str(uuid.uuid4()).encode()
                message = self.message.replace(self.task_id, own)
                requests.append(_command("EVAL", ENQUEUE, 2, DEFAULT_QUEUE, ACCEPTED, message, own))
            self.enqueued += count
            yield b"".join(requests), count

    def unit(self, number: int) -> Cycle:
        """What a worker sends for a task: it takes the message, and is done with it."""
        held = f"unacked:bench{number}@host:{DEFAULT_QUEUE}"
        take = _command("BLMOVE", DEFAULT_QUEUE, held, "RIGHT", "LEFT", 1)
        find_id = re.compile(rb'"id": "([0-9a-f-]{36})"')
        while True:
            reply = yield take, 1
            if not reply.startswith(b"$"):
                continue
            message = reply.partition(b"\r\n")[2][:-2]
            found = find_id.search(message)
            if not found:
                raise RuntimeError(f"No task id in {message!r}")
            yield _command("EVAL", ACKNOWLEDGE, 2, held, ACCEPTED, message, found[1]), 1
            self.done += 1


@dataclass
class Plain:
    """The reference: SETs of the same size."""

    value: bytes
    done: int = 0

    def unit(self, number: int) -> Cycle:
        """One SET after the other."""
        request = _command("SET", f"plain{number}", self.value)
        while True:
            yield request, 1
            self.done += 1


@dataclass
class Stores:
    """What a worker sends to the results for each state of a task."""

    value: bytes
    done: int = 0

    def unit(self, _: int) -> Cycle:
        """Look at the state that is stored, store the next one and tell who waits for it."""
        while True:
            key = f"celery-task-meta-{uuid.uuid4()}"
            yield _command("GET", key), 1
            commands = (("MULTI",), ("SETEX", key, 3600, self.value), ("PUBLISH", key, self.value), ("EXEC",))
            yield b"".join(_command(*words) for words in commands), 4
            self.done += 1


@dataclass(frozen=True)
class Full:
    """A Redis that was sent as much as it takes."""

    connections: int
    rate: float  # a second
    redis: float  # its share of a processor
    busy: float  # the share of the time in which it computed, flushed or waited for a processor
    load: float  # the share of a processor that the load took
    done: int
    use: Use


# A process of its own, in step with nobody, looks how often Redis sleeps because it has nothing to do.
WATCH = """
import sys, time
from pathlib import Path

states, end = [], time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    states.append(Path(sys.argv[1]).read_text().rpartition(")")[2].split()[0])
    time.sleep(0.003)
print(1 - states.count("S") / len(states))
"""


def replay(server: RedisServer, cycles: Iterable[Cycle], count: Callable[[], int], seconds: float) -> Full:
    """Go through all cycles at once for so long, and count."""
    server.client(0).flushall()
    connections = [Connection(server, cycle) for cycle in cycles]
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)

        def go_on(until: float) -> None:
            while time.monotonic() < until:
                for key, _ in selector.select(0.1):
                    key.data.read()
                for connection in connections:
                    if connection.parked:
                        connection.ask_again()

        go_on(time.monotonic() + seconds / 5)
        command = [sys.executable, "-c", WATCH, f"/proc/{server.program.process.pid}/stat", str(seconds * 0.9)]
        watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        before, done, cpu = look(server), count(), time.process_time()
        go_on(time.monotonic() + seconds)
        use, done, cpu = look(server).since(before), count() - done, time.process_time() - cpu
    for connection in connections:
        connection.socket.close()
    busy = float(watch.communicate()[0])
    return Full(len(connections), done / use.seconds, use.cpu / use.seconds, busy, cpu / use.seconds, done, use)


@dataclass(frozen=True)
class Limits:
    """What the two Redis take at most."""

    mixes: dict[int, tuple[Full, Full]]  # workers -> tasks, and plain SETs over as many connections
    stores: Full

    @property
    def best(self) -> Full:
        """The most tasks."""
        return max((mix for mix, _ in self.mixes.values()), key=lambda full: full.rate)


def measure_limits(directory: Path, sample: tuple[bytes, bytes], result: bytes, seconds: float) -> Limits:
    """Fill the broker with what tasks cost it, then the results."""
    mixes = {}
    with Stack(directory) as stack:
        for units in UNITS:
            mix, plain = Mix(*sample, room=2 * units + PUBLISHERS * BATCH), Plain(sample[0])
            cycles = [*[mix.publisher() for _ in range(PUBLISHERS)], *map(mix.unit, range(units))]
            tasks = replay(stack.broker, cycles, lambda mix=mix: mix.done, seconds)  # type: ignore[misc]
            clients = [plain.unit(number) for number in range(units + PUBLISHERS)]
            mixes[units] = tasks, replay(stack.broker, clients, lambda plain=plain: plain.done, seconds / 2)  # type: ignore[misc]
        stores = Stores(result)
        return Limits(mixes, replay(stack.results, map(stores.unit, range(STORERS)), lambda: stores.done, seconds))


def check_mix(api: ApiCosts, tiny: Tiny, full: Full) -> None:
    """Compare what the replay sends for a task with what the platform has sent.

    Raises:
        RuntimeError: they differ; the replay above must be made like the platform again.
    """
    real = _each(api.broker.calls, api.enqueued) + _each(tiny.broker.calls, tiny.done)
    played = _each(full.use.calls, full.done)
    if real != played:
        raise RuntimeError(f"The replay sends {dict(played)} for a task, the platform {dict(real)}.")


def _each(calls: Counter[str], count: int) -> Counter[str]:
    return +Counter({name: round(number / count) for name, number in calls.items()})
