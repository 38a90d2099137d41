"""Flower as the guide starts it: JSON logs, no page without the password, and nothing that changes anything."""

import base64
import hashlib
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flower.urls import handlers
from tornado.web import RequestHandler

from celery_durable.testing import RedisServer, free_port, wait_for
from durable_console.flower.gate import FORWARDING_HEADERS, READING_POSTS
from tests.support import Program, start_worker

pytestmark = pytest.mark.integration

PASSWORD, PREVIOUS_PASSWORD = secrets.token_hex(16), secrets.token_hex(16)
# No test may use up the attempts of the others, which come from the same address.
NO_LIMIT = {"FLOWER_FAILED_LOGIN_LIMIT": "unlimited"}


@pytest.fixture(scope="module", params=["", "monitor"], ids=["plain", "with url_prefix"])
def flower(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Program]]:
    """Start Flower and return its base URL."""
    prefix = request.param
    env = {"FLOWER_BASIC_AUTH": f"admin:{PASSWORD}\nadmin:{PREVIOUS_PASSWORD}", **NO_LIMIT}
    options = [f"--url_prefix={prefix}"] if prefix else []
    directory = tmp_path_factory.mktemp("flower")
    url, program = start_flower(directory / "flower.log", {**redis_server.environment(14, 15), **env}, *options)
    yield url + (f"/{prefix}" if prefix else ""), program
    program.stop()


def start_flower(log: Path, env: dict[str, str], *options: str) -> tuple[str, Program]:
    """Start Flower and return its URL."""
    port = free_port()
    command = [sys.executable, "-m", "durable_console.flower", f"--port={port}"]
    program = Program([*command, *options], log, env)
    program.wait_for_output("Visit me")
    return f"http://127.0.0.1:{port}", program


def path_of(pattern: str) -> str:
    """Return a path that a route's pattern matches."""
    path = re.sub(r"\(\.[+*]\)|\.\*", "x", pattern.rstrip("$"))
    return path.replace("/?", "") if path.startswith("/") else f"/{path}"


def table() -> list[tuple[str, Any]]:
    """Return Flower's routes: a path that matches, and the handler's class."""
    entries = [(entry.regex.pattern, entry.handler_class) if hasattr(entry, "regex") else entry for entry in handlers]
    return [(path_of(pattern), handler) for pattern, handler, *_ in entries]


def routes() -> list[str]:
    """Return one path for each of Flower's routes."""
    return [path for path, _ in table()]


def changing_routes() -> set[tuple[str, str]]:
    """Return method and path of everything that Flower offers beyond reading."""
    return {
        (method, path)
        for path, handler in table()
        for method in ("POST", "PUT", "DELETE", "PATCH")
        if getattr(handler, method.lower()) is not getattr(RequestHandler, method.lower()) and path not in READING_POSTS
    }


@pytest.mark.attack("Flower's gate")
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


@pytest.mark.attack("Flower's gate")
@pytest.mark.parametrize("header", FORWARDING_HEADERS)
def test_the_health_check_is_closed_from_outside(flower: tuple[str, Program], header: str) -> None:
    """A request that a proxy on this host hands on comes from outside."""
    url = f"{flower[0]}/healthcheck"
    assert httpx.get(url, headers={header: "127.0.0.1"}).status_code == 401
    assert httpx.get(url, headers={header: ""}).status_code == 401
    assert httpx.get(url, headers={header: "192.0.2.1"}, auth=("admin", PASSWORD)).text == "OK"


def test_the_health_check_is_closed_to_other_hosts(redis_server: RedisServer, tmp_path: Path) -> None:
    """Asked through an address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        address = probe.getsockname()[0]
    env = {**redis_server.environment(14, 15), "FLOWER_BASIC_AUTH": f"admin:{PASSWORD}"}
    url, program = start_flower(tmp_path / "flower.log", env, f"--address={address}")
    try:
        url = f"{url.replace('127.0.0.1', address)}/healthcheck"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 401
    finally:
        program.stop()


@pytest.mark.attack("Flower's gate")
def test_a_balancers_word_counts_and_an_unexpected_clients_does_not(redis_server: RedisServer, tmp_path: Path) -> None:
    """Behind a balancer, one client's wrong passwords do not shut out all others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        address = probe.getsockname()[0]
    for trusted, status in ((address, 401), ("203.0.113.1", 429)):
        env = {
            **redis_server.environment(14, 15),
            "FLOWER_BASIC_AUTH": f"admin:{PASSWORD}",
            "FLOWER_FAILED_LOGIN_LIMIT": "1/minute",
            "FLOWER_TRUSTED_PROXIES": f"203.0.113.2,{trusted}",
        }
        url, program = start_flower(tmp_path / "flower.log", env, f"--address={address}")
        try:
            url = f"{url.replace('127.0.0.1', address)}/broker"
            seen = [
                httpx.get(url, auth=("admin", "wrong"), headers={"X-Forwarded-For": client}).status_code
                for client in ("198.51.100.1", "198.51.100.2")
            ]
            assert seen == [401, status]
        finally:
            program.stop()


def test_a_previous_password_still_opens(flower: tuple[str, Program]) -> None:
    """A password is replaced without a moment in which nobody knows it."""
    for password in (PASSWORD, PREVIOUS_PASSWORD):
        assert httpx.get(f"{flower[0]}/broker", auth=("admin", password)).status_code == 200
    assert httpx.get(f"{flower[0]}/broker", auth=("admin", f"{PASSWORD}\nadmin")).status_code == 401


@pytest.mark.attack("Flower's gate")
def test_passwords_cannot_be_tried_for_ever(redis_server: RedisServer, tmp_path: Path) -> None:
    """An address that was wrong too often is not asked; others are."""
    env = {
        **redis_server.environment(14, 15),
        "FLOWER_BASIC_AUTH": f"admin:{PASSWORD}",
        "FLOWER_FAILED_LOGIN_LIMIT": "3/minute",
    }
    url, program = start_flower(tmp_path / "flower.log", env)
    try:
        tries = [httpx.get(f"{url}/broker", auth=("admin", "wrong")) for _ in range(4)]
        assert [answer.status_code for answer in tries] == [401, 401, 401, 429]
        assert 0 < int(tries[-1].headers["Retry-After"]) <= 60
        assert httpx.get(f"{url}/broker", auth=("admin", PASSWORD)).status_code == 429
        assert httpx.get(f"{url}/broker").status_code == 401, "a browser's first question is no attempt"
        assert httpx.get(f"{url}/healthcheck").status_code == 200
        proxied = {"X-Forwarded-For": "203.0.113.9, 198.51.100.1"}
        assert httpx.get(f"{url}/broker", auth=("admin", PASSWORD), headers=proxied).status_code == 200
    finally:
        program.stop()


@pytest.mark.attack("Flower's gate")
def test_nothing_can_be_changed(flower: tuple[str, Program]) -> None:
    """Neither by Flower's own routes that change something, nor by any other method on any route."""
    url, _ = flower
    assert len(changing_routes()) >= 14
    with httpx.Client(auth=("admin", PASSWORD)) as client:
        for method, path in changing_routes():
            answer = client.request(method, url + path)
            assert (answer.status_code, "FLOWER_READ_ONLY" in answer.text) == (403, True), f"{method} {path}"
        for path in routes():
            for method in ("PUT", "PATCH", "DELETE", "SHUTDOWN"):
                assert client.request(method, url + path).status_code in {403, 405}, f"{method} {path}"
        rows = {"draw": "1", "start": "0", "length": "10", "order[0][column]": "0"}
        assert client.post(f"{url}/tasks/datatable", data=rows).json()["data"] == []


def test_changes_are_possible_where_they_are_asked_for(redis_server: RedisServer, tmp_path: Path) -> None:
    """FLOWER_READ_ONLY=false opens Flower's buttons."""
    env = {**redis_server.environment(14, 15), "FLOWER_BASIC_AUTH": f"admin:{PASSWORD}", "FLOWER_READ_ONLY": "false"}
    url, program = start_flower(tmp_path / "flower.log", env)
    try:
        path = f"{url}/api/task/send-task/app.agents.tasks.example_task.example_agent_task"
        assert httpx.post(path, json={"args": ["t", {}]}).status_code == 401
        assert "task-id" in httpx.post(path, json={"args": ["t", {}]}, auth=("admin", PASSWORD)).json()
    finally:
        program.stop()
        redis_server.client(14).flushdb()


@pytest.mark.attack("Flower's gate")
def test_no_other_site_uses_a_browsers_password(redis_server: RedisServer, tmp_path: Path) -> None:
    """A browser that knows the password sends it along with a form of any site; those without TLS send Origin alone."""
    env = {**redis_server.environment(14, 15), "FLOWER_BASIC_AUTH": f"admin:{PASSWORD}", "FLOWER_READ_ONLY": "false"}
    url, program = start_flower(tmp_path / "flower.log", env)
    sites = [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
    sites += [
        {"Origin": origin} for origin in ("http://elsewhere.example", "null", f"{url}0", f"{url}.elsewhere.example")
    ]
    try:
        with httpx.Client(auth=("admin", PASSWORD)) as client:
            for site in sites:
                for method, path in changing_routes():
                    headers = {**site, "Content-Type": "text/plain", "X-Forwarded-Host": "elsewhere.example"}
                    answer = client.request(method, url + path, headers=headers, content='{"args": []}')
                    assert answer.status_code == 403, (site, method, path)
        assert redis_server.client(14).llen("celery") == 0
    finally:
        program.stop()


def test_security_headers(flower: tuple[str, Program]) -> None:
    """On pages, files, refusals and errors; and they allow the scripts that Flower's pages hold."""
    url, _ = flower
    inline = 0
    with httpx.Client(auth=("admin", PASSWORD)) as client:
        for path in (
            "/",
            "/tasks",
            "/broker",
            "/metrics",
            "/static/js/flower.js",
            "/nowhere",
            "/api/workers",
            "/worker/x",
        ):
            for answer in (client.get(url + path), httpx.get(url + path)):
                assert answer.headers["X-Frame-Options"] == "DENY"
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert "Server" not in answer.headers
                for script in re.findall(r"<script[^>]*>([^<]+)</script>", answer.text):
                    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
                    assert f"'sha256-{digest}'" in answer.headers["Content-Security-Policy"], script
                    inline += 1
                assert not re.search(r"<[^>]+\son[a-z]+=", answer.text), "an inline event handler"
        assert inline > 0
        assert client.get(f"{url}/broker").headers["Cache-Control"] == "no-store"


@pytest.mark.attack("Flower's gate")
def test_no_page_shows_a_secret(redis_server: RedisServer, tmp_path: Path) -> None:
    """All pages that are linked, and all that the API answers, next to a worker that has every secret."""
    known = {
        name: secrets.token_hex(16)
        for name in (
            *("GROQ_API_KEY", "GEMINI_API_KEY", "SUPABASE_KEY", "BACKEND_API_KEY"),
            *("TASK_SIGNING_KEY", "CONTROL_SIGNING_KEY"),
        )
    }
    env = {**redis_server.environment(14, 15), **known, "FLOWER_BASIC_AUTH": f"admin:{PASSWORD}"}
    worker = start_worker(tmp_path / "worker.log", env)
    url, program = start_flower(tmp_path / "flower.log", env)
    try:
        with httpx.Client(auth=("admin", PASSWORD), base_url=url) as client:
            wait_for(lambda: client.get("/api/workers", params={"refresh": "1"}).json())
            # Of tasks before that Flower would never hear.
            worker.wait_for_output("Events of group {task} enabled")
            code = "from app.agents.tasks.example_task import *; print(example_agent_task.delay('t', {}).id)"
            task = Program([sys.executable, "-c", code], tmp_path / "send.log", env)
            assert task.process.wait(20) == 0
            task_id = task.output().strip()
            wait_for(lambda: client.get(f"/task/{task_id}").status_code == 200)
            (name,) = client.get("/api/workers").json()
            waiting = {path.removesuffix("x") + value for path in routes() for value in (name, task_id)} | {*routes()}
            seen: dict[str, str] = {}
            while waiting:
                path = waiting.pop()
                answer = client.get(path)
                seen[path] = f"{answer.headers}{answer.text}"
                if "html" in answer.headers.get("Content-Type", ""):
                    found = {
                        link.partition("#")[0] for link in re.findall(r'(?:href|src)="(/[^"/][^"]*)"', answer.text)
                    }
                    waiting |= found - seen.keys()
    finally:
        program.stop()
        worker.stop()
    assert "broker_url" in seen[f"/worker/{name}"], "the worker's configuration"
    assert "task_time_limit" in seen["/api/workers"]
    assert len(seen) > 60
    for path, text in seen.items():
        for secret in (*known.values(), redis_server.password, PASSWORD):
            assert secret not in text, path
    assert all(secret not in program.output() for secret in (*known.values(), redis_server.password, PASSWORD))


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
