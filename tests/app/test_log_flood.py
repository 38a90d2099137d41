"""What unexpected clients send does not fill the disk, and nothing is lost about those who have a key."""

import logging
import secrets
import time
from pathlib import Path

import httpx
import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from celery_durable.testing import RedisServer
from celery_durable.web import access_log
from durable_console.web import security
from test_flower import start_flower
from tests.support import Api

LONG = 60_000

pytestmark = pytest.mark.attack("what unexpected clients send is cut, and its lines are limited")


def record(name: str, level: int, *args: object) -> logging.LogRecord:
    """Return what a logger gives to its handlers."""
    return logging.LogRecord(name, level, __file__, 1, "%s " * len(args), args, None)


FEW = (logging.DEBUG, logging.INFO, logging.WARNING)


@given(st.lists(st.sampled_from(FEW), min_size=1, max_size=200) | st.just([logging.ERROR] * 100))
def test_lines_about_unexpected_clients_are_few_and_short(levels: list[int]) -> None:
    unexpected = access_log.UnexpectedClientsFilter()
    seconds = time.monotonic()
    written = [
        line
        for level in levels
        if unexpected.filter(line := record("uvicorn.access", level, "1.2.3.4", "GET", "/" + "x" * LONG, "1.1", 404))
    ]
    seconds = time.monotonic() - seconds
    assert len(written) <= access_log.LINES_PER_SECOND * (int(seconds) + 2)
    assert all(len(line.getMessage()) < 400 for line in written)
    if logging.ERROR not in levels:
        assert unexpected.filter(record("uvicorn.error", logging.ERROR, "broken"))
    assert unexpected.filter(record("celery_durable.aio.publisher", logging.INFO, "Task accepted"))


def test_a_second_says_what_the_one_before_left_out(caplog: pytest.LogCaptureFixture) -> None:
    unexpected = access_log.UnexpectedClientsFilter()
    while not caplog.records:
        unexpected.filter(record("uvicorn.access", logging.INFO, "x"))
    assert "lines about requests without a valid key were left out" in caplog.text


@given(
    st.sampled_from(["X-API-Key", "Authorization"]), st.sampled_from(["", "Bearer ", "Basic "]), st.binary(max_size=40)
)
def test_whatever_is_offered_as_a_key_is_no_error(name: str, scheme: str, offered: bytes) -> None:
    """An error would have its trace in the log, and would not count as a failed login."""
    headers = Headers({name: scheme + offered.decode("latin-1")})
    guard = security.Guard(["k" * 16], [], requests="unlimited", failed_logins="unlimited")
    with pytest.raises(HTTPException) as answer:
        guard.admit(security._offered_key(headers, basic=True), "127.0.0.1", "Bearer")
    assert answer.value.status_code == 401


@pytest.mark.integration
def test_a_flood_of_long_paths(redis_server: RedisServer, tmp_path: Path) -> None:
    """388 MB in 18 s it was; every known way to have something written, for a second or more."""
    api = Api(tmp_path / "api.log", {**redis_server.environment(0, 1), "FAILED_LOGIN_LIMIT": "unlimited"})
    try:
        before, began = api.program.log.stat().st_size, time.monotonic()
        with httpx.Client(base_url=api.url) as client:
            while time.monotonic() - began < 2:
                path = "/" + "x" * LONG
                client.get(path)
                client.get(f"/tasks/status{path}", headers={"X-API-Key": "y" * 10_000})
                client.get("/status", headers=[(b"Authorization", b"Basic " + b"\xff" * 1000)])
                client.get("/health", params={"q": "z" * LONG})
                client.request("M" * 10_000, "/health", headers={"X-Request-ID": "\x7f" * 5000, "Upgrade": "w" * 1000})
        seconds = time.monotonic() - began
        known = [api.get(f"/tasks/status/{number}").request.url.path for number in range(100)]
        written = api.program.log.stat().st_size - before
        assert written < 1024 * 500 * (seconds / 18 + 1)
        lines = [line["message"] for line in api.program.log_lines()]
        assert all(any(f"{path} " in line for line in lines) for path in known)
        assert max(map(len, lines)) < 1000
        assert [line for line in api.program.log_lines() if line["level"] == "ERROR"] == []
    finally:
        api.stop()


@pytest.mark.integration
def test_flower_writes_little_too(redis_server: RedisServer, tmp_path: Path) -> None:
    env = {"FLOWER_BASIC_AUTH": f"admin:{secrets.token_hex(8)}", **redis_server.environment(14, 15)}
    url, program = start_flower(tmp_path / "flower.log", env)
    try:
        before = program.log.stat().st_size
        with httpx.Client() as client:
            for _ in range(30):
                client.get(f"{url}/" + "x" * LONG, auth=("admin", "wrong"))
                client.request("M" * 1000, f"{url}/")
        assert program.log.stat().st_size - before < 30 * LONG / 20
    finally:
        program.stop()
