"""Requests that Schemathesis makes up from the API's own /openapi.json: all that is answered must be documented.

Every check of Schemathesis is on. The requests are the same in each run.
"""

import itertools
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis

from app.api.body import _find_problem
from app.api.models import VISIBLE_ASCII
from app.api.tasks import LONGEST_WAIT
from celery_durable.testing import RedisServer
from tests.support import REPOSITORY, Api, start_worker

pytestmark = [pytest.mark.integration, pytest.mark.attack("answers as documented")]

OPERATIONS = 11
CONFIG = """
hooks = "tests.app.test_api_fuzz"

[generation]
deterministic = true
max-examples = 30
database = "none"

# 410: what an old task id gets; the library does not know that one.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "404", "410", "429", "503"]

# 413: a body that is too large is not looked into.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx"]

# A Redis that is away is documented; here it is there.
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx"]
"""
# Schemathesis puts the variable of its environment in.
WITH_KEY = """
[auth.openapi.X-API-Key]
api_key = "${API_KEY}"
"""
_numbers = itertools.count()


@schemathesis.hook
def before_call(_: Any, case: Any, __: dict[str, Any]) -> None:
    """Use no Idempotency-Key twice: with other data it is rejected, as no schema can say; wait a second only."""
    key = (case.headers or {}).get("idempotency-key")
    if key and re.fullmatch(VISIBLE_ASCII, key) and len(key) < 200:
        case.headers["idempotency-key"] = f"{key}{next(_numbers)}"
    if (query := case.query or {}).get("wait") in range(2, LONGEST_WAIT + 1):
        query["wait"] = 1


@schemathesis.hook
def filter_body(_: Any, body: Any) -> bool:
    """Leave out what no schema can say either: too deep, too large a number, a key that was used before."""
    entries = [body]
    if isinstance(body, dict) and isinstance(body.get("tasks"), list):
        entries = body["tasks"]
    keys = [entry["idempotency_key"] for entry in entries if isinstance(entry, dict) and entry.get("idempotency_key")]
    data = [entry["data"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("data"), dict)]
    return not keys and all(_find_problem(one) is None for one in data)


@pytest.fixture(scope="module")
def fuzzed_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API with everything behind it, of its own: the tasks that it gets would keep others waiting."""
    directory = tmp_path_factory.mktemp("fuzz")
    redis_server = RedisServer(directory / "redis")
    env = redis_server.environment(0, 1)
    worker = start_worker(directory / "worker.log", env)
    # What is rejected by number says nothing about what was asked.
    limits = {"RATE_LIMIT": "unlimited", "FAILED_LOGIN_LIMIT": "unlimited", "ENVIRONMENT": "production"}
    api = Api(directory / "api.log", {**env, **limits})
    yield api
    api.stop()
    worker.stop(signal.SIGKILL)
    redis_server.stop()


@pytest.mark.parametrize("auth", [WITH_KEY, ""], ids=["with key", "without key"])
def test_everything_is_answered_as_documented(fuzzed_api: Api, tmp_path: Path, auth: str) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG + auth)
    ended = subprocess.run(
        ["schemathesis", "--no-color", "--config-file", str(config), "run", f"{fuzzed_api.url}/openapi.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "API_KEY": fuzzed_api.key},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"Tested: {OPERATIONS}" in ended.stdout
    assert [line for line in fuzzed_api.program.log_lines() if line["level"] == "ERROR"] == []
