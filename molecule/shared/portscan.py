"""Which ports of a host answer to whom: a helper for tests, and the program that it runs inside a test host.

    with portscan.outsider("redis-outsider") as outsider:
        scan = outsider.scan(portscan.address(host))    # all TCP ports
        assert scan.answers == {22}                     # neither a connection nor a refusal: the others were dropped

A test host scans another one over the Podman network. The outsider is one that is in no inventory.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALL_PORTS = range(1, 65536)
# Linux sends a lost SYN again after a second.
TIMEOUT = 1.4


@dataclass
class Scan:
    """What came back: a connection or data, a refusal (the packet got through), or nothing."""

    open: set[int]
    refused: set[int]
    silent: int
    seconds: float

    @property
    def answers(self) -> set[int]:
        """The ports that gave any sign of life."""
        return self.open | self.refused


class Scanner:
    """A test host from which others are looked at."""

    def __init__(self, name: str) -> None:
        """Look from the container called ``name``."""
        self.name = name

    def scan(self, address: str, ports: Iterable[int] = ALL_PORTS, protocol: str = "tcp") -> Scan:
        """Try ``ports`` of ``address``; with the protocol ping they are the numbers of echo requests."""
        project = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
        order = json.dumps({"address": address, "ports": list(ports), "protocol": protocol})
        with Path(__file__).open() as program:
            run = subprocess.run(
                [project / "scripts/podman.sh", "exec", "--interactive", self.name, "python3", "-c", program.read()],
                input=order,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=120,
            )
        answer = json.loads(run.stdout)
        return Scan(set(answer["open"]), set(answer["refused"]), answer["silent"], answer["seconds"])

    def hold(self, address: str, port: int, count: int) -> int:
        """Open so many connections, keep them all, and return how many there are; then close them."""
        program = (
            "import contextlib, socket, sys\n"
            "held = []\n"
            "for _ in range(int(sys.argv[3])):\n"
            "    with contextlib.suppress(OSError):\n"
            "        held.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), 2))\n"
            "print(len(held))\n"
        )
        podman = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "scripts/podman.sh"
        command = [str(podman), "exec", self.name, "python3", "-c", program, address, str(port), str(count)]
        return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout)


@contextlib.contextmanager
def outsider(name: str, system: str = "debian13") -> Iterator[Scanner]:
    """Start a test host that no inventory knows, and remove it at the end."""
    testhost = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "scripts/testhost.sh"
    subprocess.run(
        [testhost, "start", name, system, "--cap-add", "NET_RAW"], stdout=subprocess.DEVNULL, check=True, timeout=300
    )
    try:
        yield Scanner(name)
    finally:
        subprocess.run([testhost, "stop", name], check=True, timeout=60)


def address(host: Any) -> str:
    """Return the address by which the other test hosts reach ``host`` (of testinfra)."""
    return str(json.loads(host.check_output("ip -json -4 route get 192.0.2.1"))[0]["prefsrc"])


def address_of(name: str) -> str:
    """Return the address of the container called ``name``, whatever the network's name server knows of it."""
    podman = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "scripts/podman.sh"
    addresses = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    command = [str(podman), "inspect", "--format", addresses, name]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout.strip()


# From here on: what runs inside the test host, with the standard library alone.


def probe_tcp(address: str, ports: list[int]) -> Iterator[tuple[int, str]]:
    """Begin connections to all ``ports`` at once; yield those that were answered in time."""
    poll = select.epoll()
    pending: dict[int, tuple[socket.socket, int]] = {}
    for port in ports:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if connection.connect_ex((address, port)) == errno.EINPROGRESS:
            poll.register(connection, select.EPOLLOUT)
            pending[connection.fileno()] = (connection, port)
    deadline = time.monotonic() + TIMEOUT
    while pending and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left):
            connection, port = pending.pop(descriptor)
            error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            connection.close()
            yield port, "refused" if error else "open"
    for connection, _ in pending.values():
        connection.close()
    poll.close()


def probe_udp(address: str, ports: list[int]) -> Iterator[tuple[int, str]]:
    """Send each port one datagram; a closed one that is reached says so by ICMP."""
    sockets = [(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), port) for port in ports]
    for connection, port in sockets:
        connection.connect((address, port))
        connection.send(b"hello")
    time.sleep(TIMEOUT)
    for connection, port in sockets:
        connection.setblocking(False)
        try:
            connection.recv(64)
            yield port, "open"
        except BlockingIOError:
            pass
        except OSError:
            yield port, "refused"
        connection.close()


def probe_ping(address: str, numbers: list[int]) -> Iterator[tuple[int, str]]:
    """Send one echo request with each of the ``numbers``; yield those that were answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as connection:
        for number in numbers:
            # Type 8, code 0, identifier 1: the checksum of so few words is what is missing to all ones.
            connection.sendto(struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - 1 - number, 1, number), (address, 0))
        connection.settimeout(TIMEOUT)
        with contextlib.suppress(TimeoutError):
            while True:
                kind, number = struct.unpack("!B5xH", connection.recv(64)[20:28])
                if kind == 0:
                    yield number, "open"


def main() -> None:
    """Take the order from standard input and answer on standard output."""
    order = json.load(sys.stdin)
    # As many at once as there may be open files.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    window = min(8192, limit - 64)
    probe = {"tcp": probe_tcp, "udp": probe_udp, "ping": probe_ping}[order["protocol"]]
    started = time.monotonic()
    found: dict[str, list[int]] = {"open": [], "refused": []}
    for begin in range(0, len(order["ports"]), window):
        for port, answer in probe(order["address"], order["ports"][begin : begin + window]):
            found[answer].append(port)
    silent = len(order["ports"]) - len(found["open"]) - len(found["refused"])
    json.dump({**found, "silent": silent, "seconds": round(time.monotonic() - started, 1)}, sys.stdout)


if __name__ == "__main__":
    main()
