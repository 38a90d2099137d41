#!/usr/bin/python3
"""Stands in for API and Flower: backend ADDRESS PORT... Files in /run/backend say how it behaves.

not-ready: /health/ready answers 503. drop: every other request is read, and its connection closed without an answer.
Like Django, /health/ready answers 400 to a Host that is neither 127.0.0.1 nor the backend's address.
/run/backend/requests holds one JSON object for each request that is no health check.
"""

import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

STATE = Path("/run/backend")


class Handler(BaseHTTPRequestHandler):
    """Answers with what it was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer any path."""
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path.startswith(("/health", "/flower/healthcheck")):
            status = 200
            if path == "/health/ready":
                known = self.headers.get("Host", "").split(":")[0] in ("127.0.0.1", sys.argv[1])
                status = 400 if not known else 503 if (STATE / "not-ready").exists() else 200
            self.answer(status, {})
            return
        length = len(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        seen = {"method": self.command, "path": self.path, "length": length, "headers": dict(self.headers.items())}
        with (STATE / "requests").open("a") as log:
            log.write(json.dumps(seen) + "\n")
        if (STATE / "drop").exists():
            self.close_connection = True
            return
        time.sleep(float(query.get("seconds", ["0"])[0]))
        self.answer(200, {"server": socket.gethostname(), "port": self.connection.getsockname()[1], **seen})

    do_POST = do_GET  # noqa: N815 - the name that the server looks for

    def answer(self, status: int, content: dict[str, object]) -> None:
        """Send JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: health checks come all the time."""


servers = [ThreadingHTTPServer((sys.argv[1], int(port)), Handler) for port in sys.argv[2:]]
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()
