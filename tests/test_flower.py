"""Flower as the guide starts it: JSON logs, and no page without the password but the health check."""

import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flower.urls import handlers

from tests.support import Program, RedisServer, free_port

pytestmark = pytest.mark.integration

PASSWORD = secrets.token_hex(16)


@pytest.fixture(scope="module", params=["", "monitor"], ids=["plain", "with url_prefix"])
def flower(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Program]]:
    """Start Flower and return its base URL."""
    env = {**redis_server.environment(14, 15), "FLOWER_BASIC_AUTH": f"admin:{PASSWORD}"}
    port, prefix = free_port(), request.param
    command = [sys.executable, "-m", "celery", "-A", "app.agents.worker", "flower", f"--port={port}"]
    if prefix:
        command += [f"--url_prefix={prefix}"]
    directory: Path = tmp_path_factory.mktemp("flower")
    program = Program(command, directory / "flower.log", env)
    program.wait_for_output("Visit me")
    yield f"http://127.0.0.1:{port}" + (f"/{prefix}" if prefix else ""), program
    program.stop()


def routes() -> list[str]:
    """Return one path for each of Flower's routes."""
    patterns = [getattr(handler, "regex", None) or re.compile(handler[0]) for handler in handlers]
    paths = [re.sub(r"\(\.[+*]\)|\.\*", "x", pattern.pattern.rstrip("$")) for pattern in patterns]
    return [path.replace("/?", "") if path.startswith("/") else f"/{path}" for path in paths]


def test_every_route_but_the_health_check_asks_for_the_password(flower: tuple[str, Program]) -> None:
    """All routes of Flower's table, all methods, and files that exist."""
    url, _ = flower
    assert len(routes()) > 30
    paths = {*routes(), "/static/js/flower.js", "/healthcheck/", "/healthcheck/../metrics"} - {"/healthcheck"}
    with httpx.Client() as client:
        for path in paths:
            for method in ("GET", "POST", "OPTIONS", "HEAD"):
                assert client.request(method, url + path).status_code == 401, f"{method} {path}"
        assert client.get(f"{url}/healthcheck").text == "OK"


@pytest.mark.parametrize("credentials", [("admin", "wrong"), ("", ""), ("ädmin", PASSWORD), (PASSWORD, "admin")])
def test_wrong_password(flower: tuple[str, Program], credentials: tuple[str, str]) -> None:
    """No password but the right one."""
    assert httpx.get(f"{flower[0]}/metrics", auth=credentials).status_code == 401
    assert httpx.get(f"{flower[0]}/metrics", headers={"Authorization": "Basic %"}).status_code == 401


def test_right_password(flower: tuple[str, Program]) -> None:
    """Pages, metrics and static files are there."""
    url, _ = flower
    for path in ("/workers", "/metrics", "/static/js/flower.js", "/api/workers"):
        assert httpx.get(url + path, auth=("admin", PASSWORD)).status_code == 200, path


def test_logs(flower: tuple[str, Program], redis_server: RedisServer) -> None:
    """JSON from the first line, without passwords."""
    _, program = flower
    assert {line["service"] for line in program.log_lines()} == {"flower"}
    assert redis_server.password not in program.output()
    assert PASSWORD not in program.output()
    command_line = Path(f"/proc/{program.process.pid}/cmdline").read_text()
    assert PASSWORD not in command_line
