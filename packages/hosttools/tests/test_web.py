"""Requests of the programs on hosts."""

import importlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from hosttools import process, web
from hosttools.doctor import api
from hosttools.process import Result


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


def test_an_application_that_redirects_http_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Django does with SECURE_SSL_REDIRECT, where its server does not say that TLS ends before it."""

    class OnlyOverTls(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers["X-Forwarded-Proto"] == "https" else 301)
            self.send_header("Location", "https://shop.example.com/")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, "active"))
    with HTTPServer(("127.0.0.1", 0), OnlyOverTls) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert list(api.check(url, "", 60, "shop", ("/", "/", ""))) == []
        command = [sys.executable, "-m", "celery_durable.probe"]
        asked = [subprocess.run([*command, how, str(server.server_port), "/"]) for how in ("api", "http")]  # noqa: PLW1510
        assert [each.returncode for each in asked] == [0, 1]
        server.shutdown()
