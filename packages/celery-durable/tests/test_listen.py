"""A server that takes its socket from systemd runs in a container, too."""

import subprocess
import sys

import httpx

from celery_durable.testing import free_port, wait_for

SERVER = (
    "import http.server, socket; "
    "server = http.server.HTTPServer(('', 0), http.server.SimpleHTTPRequestHandler, bind_and_activate=False); "
    "server.socket = socket.socket(fileno=3); server.serve_forever()"
)


def test_a_server_gets_its_socket_as_file_descriptor_3() -> None:
    port = free_port()
    command = [sys.executable, "-I", "-m", "celery_durable.listen", str(port), sys.executable, "-c", SERVER]
    with subprocess.Popen(command) as server:
        try:
            wait_for(lambda: _status(port) == 200, seconds=20)
        finally:
            server.kill()


def _status(port: int) -> int:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").status_code
    except httpx.TransportError:
        return 0
