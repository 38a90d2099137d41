"""Requests to one API process."""

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from tests.bench.scaling.processes import cpu_seconds
from tests.support import Api

# Connections that send requests at once.
CONNECTIONS = 64
WARM_CONNECTIONS, WARM_SECONDS = 4, 0.3


@dataclass(frozen=True)
class Requests:
    """What one API process has answered."""

    rate: float  # a second
    cpu: float  # seconds of the process for each
    median: float  # seconds until the answer
    slow: float  # the same, of 99 in 100 the longest
    refused: float  # share that was answered with 503: the process or Redis was too busy


def request(api: Api, method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nX-API-Key: {api.key}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def enqueue_request(api: Api, size: int = 5) -> bytes:
    return request(api, "POST", "/tasks/enqueue", json.dumps({"data": {"key": "v" * size}}).encode())


async def _ask(port: int, requests: Sequence[bytes], status: int, deadline: float, times: list[float]) -> int:
    """Send requests over one connection, each after the answer to the one before; return how many were refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    refused = 0
    for request in cycle(requests):
        began = time.monotonic()
        if began > deadline:
            break
        writer.write(request)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        if answer.startswith(b"http/1.1 503"):
            refused += 1
            continue
        if not answer.startswith(f"http/1.1 {status}".encode()):
            raise RuntimeError(f"The API does not answer with {status}: {answer.decode()}")
        times.append(time.monotonic() - began)
    writer.close()
    return refused


def load(api: Api, requests: Sequence[bytes], status: int, seconds: float, connections: int = CONNECTIONS) -> Requests:
    """Send requests over so many connections at once for a while."""
    port, pid = int(api.url.rpartition(":")[2]), api.program.process.pid

    async def ask_all(connections: int, seconds: float, times: list[float]) -> int:
        deadline = time.monotonic() + seconds
        shares = [requests[number::connections] or requests for number in range(connections)]
        return sum(await asyncio.gather(*[_ask(port, share, status, deadline, times) for share in shares]))

    # A few first: the API connects to Redis, and a busy machine does not let it make all connections at once.
    asyncio.run(ask_all(WARM_CONNECTIONS, WARM_SECONDS, []))
    times: list[float] = []
    cpu, began = cpu_seconds(pid), time.monotonic()
    refused = asyncio.run(ask_all(connections, seconds, times))
    needed = time.monotonic() - began
    if len(times) < 2:
        raise RuntimeError("The API has refused every request: the machine is too busy to be measured.")
    cuts = statistics.quantiles(times, n=100)
    cpu = cpu_seconds(pid) - cpu
    answers = len(times) + refused
    return Requests(len(times) / needed, cpu / answers, cuts[49], cuts[98], refused / answers)
