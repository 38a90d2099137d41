"""Clients that connect and send nothing, or not enough, or do not read: others are served all the same."""

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from celery_durable.testing import RedisServer, free_port, wait_for
from durable_console.flower import gate
from durable_console.web import connections
from test_flower import start_flower
from tests.support import Api, Program

pytestmark = [pytest.mark.integration, pytest.mark.attack("limits for connections, for each client and for headers")]

ATTACKER, CLIENT = "127.0.0.2", "127.0.0.1"
MANY = 1_200
HEADERS = b"GET /health HTTP/1.1\r\nHost: x\r\n"
# What clients leave unfinished, and with what they go on.
SILENT = {
    b"": b"",
    b"G": b"",
    HEADERS: b"a: b\r\n",
    b"\r\n" * 10: b"\r\n",
    b"POST /tasks/enqueue HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{": b"x",
}
IDS = ["nothing", "a byte", "no end", "blank lines", "half a body, no key"]


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Start an API whose limits no other test meets."""
    env = {**redis_server.environment(0, 1), "FAILED_LOGIN_LIMIT": "unlimited"}
    api = Api(tmp_path_factory.mktemp("connections") / "api.log", env)
    yield api
    api.stop()


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    """Close what a test has opened."""
    with ExitStack() as opened:
        yield opened


def connect(sockets: ExitStack, url: str, source: str, sent: bytes = b"") -> socket.socket:
    """Open a connection from an address of this host and send something."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = sockets.enter_context(
        socket.create_connection((host, int(port)), timeout=15, source_address=(source, 0))
    )
    connection.sendall(sent)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Read all that is there, and tell whether the server has closed the connection."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def trickles(connection: socket.socket, more: bytes) -> bool:
    """Send a little more, and tell whether the connection is there still."""
    try:
        connection.send(more)
    except ConnectionError:
        return False
    return True


def connections_of(program: Program) -> int:
    """Return how many sockets a process has."""
    found = 0
    for path in Path(f"/proc/{program.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += "socket:" in str(path.readlink())
    return found


@pytest.mark.parametrize("sent", SILENT, ids=IDS)
def test_many_silent_connections_keep_nobody_out(server: Api, sockets: ExitStack, sent: bytes) -> None:
    """From one address, more than the server's limit: each request of others is answered, and in time."""
    opened = []
    for _ in range(MANY // 4):
        opened += [connect(sockets, server.url, ATTACKER, sent) for _ in range(4)]
        if len(opened) % 100 == 0:
            assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200
    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.key}, timeout=5) as client:
        began = time.monotonic()
        answers = [client.post("/tasks/enqueue", json={"data": {}}).status_code for _ in range(20)]
        assert answers == [202] * 20
        assert time.monotonic() - began < 5
    # A client has at most so many connections; Redis' own are a few.
    assert connections_of(server.program) < connections.MAX_PER_CLIENT + 50
    assert server.program.process.poll() is None


def test_kept_connections_of_many_clients_do_not_count_as_requests(server: Api, sockets: ExitStack) -> None:
    """700 keep-alive connections that are idle, from 7 addresses, more than --limit-concurrency."""
    for number in range(700):
        kept = connect(sockets, server.url, f"127.0.1.{number % 7 + 1}", HEADERS + b"\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
    assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200


def test_all_clients_together_have_a_limit(server: Api, sockets: ExitStack) -> None:
    """From 20 addresses, together more than the process takes: the oldest silent ones go, new clients come in."""
    for number in range(MANY):
        connect(sockets, server.url, f"127.0.2.{number % 20 + 1}")
    assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200
    assert connections_of(server.program) < connections.MAX_CONNECTIONS + 50


def test_headers_must_arrive_in_time(server: Api, sockets: ExitStack) -> None:
    """However clients trickle, and on a kept connection, too: within 10 s and a moment they are out."""
    waiting: list[tuple[socket.socket, bytes]] = []
    for sent, more in SILENT.items():
        for first in (b"", HEADERS + b"\r\n"):
            connection = connect(sockets, server.url, CLIENT, first)
            if first:
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            connection.sendall(sent)
            waiting.append((connection, more))
    began = time.monotonic()

    def all_closed() -> bool:
        for entry in list(waiting):
            connection, more = entry
            if is_closed(connection) or not trickles(connection, more):
                waiting.remove(entry)
        return not waiting

    wait_for(all_closed, seconds=connections.HEADERS_BUDGET + 5)
    # Idle ones go after uvicorn's 5 s.
    assert time.monotonic() - began > connections.HEADERS_BUDGET - 1


def test_a_client_that_does_not_read_is_not_waited_for(server: Api, sockets: ExitStack) -> None:
    """Answers that nobody takes pile up no further than the sockets' buffers; then they go, the kernel's part, too."""
    requests = (HEADERS + b"\r\n") * 100
    connection = connect(sockets, server.url, CLIENT)
    connection.settimeout(connections.READING_BUDGET + 15)
    began = time.monotonic()
    with suppress(ConnectionError):
        while time.monotonic() - began < connections.READING_BUDGET + 30:
            connection.sendall(requests)
    assert connections.READING_BUDGET + 30 > time.monotonic() - began > connections.READING_BUDGET - 1
    here = connection.getsockname()[1]
    # In TIME-WAIT nothing is kept but the addresses.
    command = ["ss", "-Htan", "state", "big", f"dport = :{here}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_the_console_serves_others_too(redis_server: RedisServer, sockets: ExitStack, tmp_path: Path) -> None:
    """More silent connections than the console takes requests at once, and they do not stay."""
    port, key = free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "durable_console.serve", "serve", f"--port={port}"]
    console = Program(command, tmp_path / "console.log", {**redis_server.environment(0, 1), "BACKEND_API_KEY": key})
    console.wait_for_output("Uvicorn running")
    url = f"http://127.0.0.1:{port}"
    try:
        opened = [connect(sockets, url, ATTACKER, [*SILENT][number % 3]) for number in range(500)]
        assert connections_of(console) < connections.MAX_PER_CLIENT + 50
        for path in ("/health", "/metrics", "/status"):
            assert httpx.get(url + path, headers={"X-API-Key": key}, timeout=5).status_code == 200
        wait_for(lambda: all(map(is_closed, opened)), seconds=connections.HEADERS_BUDGET + 5)
    finally:
        console.stop()


def test_flower_serves_others_too(redis_server: RedisServer, sockets: ExitStack, tmp_path: Path) -> None:
    """The gate is a server of the same kind."""
    env = {"FLOWER_BASIC_AUTH": "admin:0123456789abcdef", **redis_server.environment(14, 15)}
    url, program = start_flower(tmp_path / "flower.log", env)
    try:
        opened = []
        for number in range(MANY):
            source = ATTACKER if number < 900 else f"127.0.2.{number % 20}"
            opened.append(connect(sockets, url, source, [*SILENT][number % 3]))
            if number % 100 == 0:
                assert httpx.get(f"{url}/healthcheck", timeout=5).status_code == 200
        assert connections_of(program) < gate.MAX_CONNECTIONS + 50
        wait_for(lambda: is_closed(opened[-1]), seconds=connections.HEADERS_BUDGET + 5)
        large = b"POST /tasks/datatable HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (gate.MAX_BODY + 1)
        assert b"400 Bad Request" in connect(sockets, url, CLIENT, large).recv(4096)
    finally:
        program.stop()
