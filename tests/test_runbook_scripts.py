"""The runbooks' scripts on the host: what they make of answers and sizes."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import load_plugin

connection = load_plugin("playbooks/files/redis_connection.py")
memory = load_plugin("playbooks/files/redis_memory.py")
disk_full = load_plugin("playbooks/files/disk_full.py")
strangers = load_plugin("playbooks/files/strangers.py")


@pytest.fixture
def answering() -> Iterator[tuple[int, list[bytes]]]:
    """A server that gives one connection the answers of a list, one for each command."""
    answers: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                for answer in answers:
                    peer.recv(4096)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], answers


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ([b"+OK\r\n", b"+PONG\r\n"], ""),
        ([b"-WRONGPASS invalid\r\n"], "auth"),
        ([b"-ERR max number of clients reached\r\n"], "maxclients"),
        ([b"+OK\r\n", b"-LOADING Redis is loading\r\n"], "loading"),
        ([b""], "ping"),
    ],
)
def test_the_first_broken_hop_is_named(answering: tuple[int, list[bytes]], answers: list[bytes], cause: str) -> None:
    port, given = answering
    given += answers
    assert connection.hops(urlsplit(f"redis://worker:x@127.0.0.1:{port}/0"))[0] == cause


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert connection.hops(urlsplit(f"redis://worker:x@127.0.0.1:{port}/0"))[0] == "refused"


def test_a_name_without_an_address() -> None:
    assert connection.hops(urlsplit("redis://worker:x@nowhere.invalid:6380/0"))[0] == "resolve"


@pytest.mark.parametrize("text", ["lots", "512", "900000gb"])
def test_a_size_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="maxmemory is"):
        memory.size(text)


def test_a_size_is_understood() -> None:
    assert memory.size("64mb") == 64 * 1024**2


def test_failed_logins_are_known_by_their_lines() -> None:
    api = r'{"message": "127.0.0.1:1 - \"GET /metrics HTTP/1.1\" 401", "line": 401}'
    flower = '{"message": "401 GET /flower (127.0.0.1) 1ms"}'
    served = r'{"message": "127.0.0.1:1 - \"GET /metrics HTTP/1.1\" 200", "line": 401}'
    assert len(strangers.LOGIN.findall("\n".join([api, flower, served]))) == 2


def test_a_file_system_in_memory_fills_up_too(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    table = tmp_path / "mounts"
    table.write_text(
        f"overlay / overlay rw 0 0\ndrill /usr tmpfs rw 0 0\n/dev/sdb /opt ext4 rw 0 0\nproc /proc proc rw 0 0\n"
        f"tmpfs /run tmpfs rw 0 0\ntmpfs {kept} tmpfs rw 0 0\n/dev/sda /etc/hosts ext4 rw 0 0\n"
    )
    assert disk_full.mounts(table) == ["/", "/opt", "/usr"]
