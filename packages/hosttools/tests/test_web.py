"""Requests of the programs on hosts."""

import importlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from hosttools import web


def test_programs_on_hosts_use_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ok(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ok) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, "http://127.0.0.1:9")  # where nothing listens
        monkeypatch.delenv("no_proxy", raising=False)
        assert importlib.reload(web).ask(f"http://127.0.0.1:{server.server_port}/") == (200, "")
        server.shutdown()
