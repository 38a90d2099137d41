"""What the health gate of site.yml asks on an API host, with a real server behind it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.preflight.cases import REDIS_USERS
from tests.support import REPOSITORY, ansible_report

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """Answers 200 to everything, and writes down what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    asked: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = asked  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def gate(server: HTTPServer, directory: Path, **variables: Any) -> list[str]:
    """Return what the gate has asked an API host."""
    common: dict[str, Any] = {
        "redis_user_passwords": dict.fromkeys(REDIS_USERS, "x"),
        "metrics_api_key": "x",
        "redis_password": "x",
    }
    common |= {"ansible_connection": "local", "api_port": server.server_port, **variables}
    groups: dict[str, Any] = {name: {} for name in ("redis", "flower", "balancers", "sentinels")}
    inventory = directory / "hosts.json"
    children = {**groups, "api": {"hosts": {"a": {}}}, "workers": {"hosts": {"b": {}}}}
    inventory.write_text(json.dumps({"all": {"vars": common, "children": children}}))
    ansible_report(f"--inventory={inventory}", REPOSITORY / "playbooks/site/health.yml")
    return list(server.asked)  # type: ignore[attr-defined]


def test_the_sample_must_be_alive_and_ready_and_see_a_worker(server: HTTPServer, tmp_path: Path) -> None:
    assert gate(server, tmp_path) == ["/health", "/health/ready", "/health/celery"]


def test_of_another_application_the_console_must_see_a_worker(server: HTTPServer, tmp_path: Path) -> None:
    shop = {"app_release_source": str(tmp_path), "app_celery": "shop.jobs", "app_ready_path": "/ready"}
    assert gate(server, tmp_path, **shop, console_port=server.server_port) == ["/ready", "/health/celery"]
