"""The operator's commands know no application: all that they need comes from the environment and secret files."""

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from celery_durable.testing import RedisServer, free_port, wait_for
from durable_console.flower.__main__ import CONFIG
from tests.support import ADMIN, REPOSITORY, Program, Stack

CONF = """
import json
from durable_console.application import celery_app, options
from celery_durable.masking import mask
conf = celery_app.conf
told = [conf.task_time_limit, conf.task_default_queue, conf.result_expires, mask(conf.broker_url)]
print(json.dumps([*told, len(options.signing_keys)]))
"""


def run(*command: str, env: dict[str, str], cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**os.environ, **env}, cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )


def test_settings_come_from_variables_and_secret_files(tmp_path: Path) -> None:
    (tmp_path / "CELERY_BROKER_URL").write_text("redis://:of-the-broker@localhost:1/4\n")
    (tmp_path / "DURABLE_SIGNING_KEY").write_text(secrets.token_hex(32))
    variables = {
        "SECRETS_DIRECTORY": f"/nowhere:{tmp_path}",
        "DURABLE_TASK_TIME_LIMIT": "77",
        "DURABLE_DEFAULT_QUEUE": "mine",
        "DURABLE_RESULT_EXPIRES": "60",
        # It would install the library once more.
        "CELERY_LOADER": "celery_durable.loader:load",
    }
    told = run(sys.executable, "-c", CONF, env=variables)
    assert told.stdout == '[77, "mine", 60, "redis://:**@localhost:1/4", 1]\n', told.stderr


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("DURABLE_TASK_TIME_LIMIT", "soon", "DURABLE_TASK_TIME_LIMIT='soon' is rejected: it must be seconds"),
        ("DURABLE_TASK_RATE_LIMIT", "fast", "DURABLE_TASK_RATE_LIMIT='fast' is rejected: it must be a number of"),
        ("DURABLE_SIGNING_KEY", "hidden", "DURABLE_SIGNING_KEY is rejected: it must be one key"),
        ("SECRETS_DIRECTORY", "/none", "SECRETS_DIRECTORY='/none' is rejected: it must name a directory"),
    ],
)
def test_a_wrong_value_is_one_sentence(name: str, value: str, sentence: str) -> None:
    told = run(*ADMIN, "queues", "list", env={name: value})
    assert (told.returncode, told.stderr.count("\n")) == (1, 1)
    assert told.stderr.startswith(sentence)
    assert "hidden" not in told.stderr


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("FLOWER_BASIC_AUTH", "hidden", "FLOWER_BASIC_AUTH is rejected: it must be user:password"),
        ("FLOWER_READ_ONLY", "maybe", "FLOWER_READ_ONLY='maybe' is rejected: it must be true or false"),
        (
            "FLOWER_FAILED_LOGIN_LIMIT",
            "0/minute",
            "FLOWER_FAILED_LOGIN_LIMIT='0/minute' is rejected: it must be NUMBER/second",
        ),
        ("FLOWER_LOG_LEVEL", "loud", "FLOWER_LOG_LEVEL='loud' is rejected: it must be one of debug"),
    ],
)
def test_a_wrong_value_of_flower_is_one_sentence(name: str, value: str, sentence: str) -> None:
    told = run(sys.executable, "-m", "durable_console.flower", env={name: value})
    assert (told.returncode, told.stderr.count("\n")) == (1, 1)
    assert told.stderr.startswith(sentence)
    assert "hidden" not in told.stderr


@pytest.mark.integration
def test_celerys_own_commands_are_signed(stack: Stack, tmp_path: Path) -> None:
    """Also where no application is in sight."""
    key = secrets.token_hex(32)
    stack.env["CONTROL_SIGNING_KEY"] = key
    stack.start_worker("--concurrency=1")
    env = {**stack.env, "DURABLE_CONTROL_KEY": key}
    asked = run(*ADMIN, "inspect", "ping", "--timeout=3", cwd=tmp_path, env=env)
    assert (asked.returncode, "pong" in asked.stdout) == (0, True), asked.stderr
    grown = run(*ADMIN, "control", "--timeout=3", "pool_grow", "1", cwd=tmp_path, env=env)
    assert "pool will grow" in grown.stdout
    rejected = run(*ADMIN, "control", "--timeout=3", "pool_grow", "1", cwd=tmp_path, env=stack.env)
    assert "only the operator's commands are followed" in rejected.stdout + rejected.stderr
    wrong = run(*ADMIN, "inspect", "ping", "--no-such-option", cwd=tmp_path, env=env)
    assert (wrong.returncode, "No such option" in wrong.stderr) == (2, True)
    assert "Inspect the workers" in run(*ADMIN, "inspect", "--help", cwd=tmp_path, env=env).stdout


@pytest.mark.integration
def test_celerys_own_command_runs_flower_with_the_gate(redis_server: RedisServer, tmp_path: Path) -> None:
    port, password = free_port(), secrets.token_hex(8)
    command = [sys.executable, "-m", "celery", "-A", "durable_console.application", "flower", f"--conf={CONFIG}"]
    env = {**redis_server.environment(14, 15), "FLOWER_BASIC_AUTH": f"admin:{password}"}
    program = Program([*command, f"--port={port}"], tmp_path / "log", env, stderr=subprocess.STDOUT)
    try:
        program.wait_for_output("Visit me")
        url = f"http://127.0.0.1:{port}/broker"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, auth=("admin", password)).status_code == 200
    finally:
        program.stop()


# durable-console serve

SERVE = [sys.executable, "-m", "durable_console.serve", "serve"]
KEYS = {"BACKEND_API_KEY": secrets.token_hex(16), "METRICS_API_KEY": secrets.token_hex(16)}


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "BACKEND_API_KEY is not set: give the console a key"),
        ({"BACKEND_API_KEY": "hidden"}, "BACKEND_API_KEY is rejected: each key must have at least 16"),
        ({**KEYS, "METRICS_API_KEY": "hidden"}, "METRICS_API_KEY is rejected: each key must have at least 16"),
        ({**KEYS, "CONSOLE_FAILED_LOGIN_LIMIT": "often"}, "CONSOLE_FAILED_LOGIN_LIMIT='often' is rejected: it must be"),
        ({**KEYS, "CONSOLE_LOG_LEVEL": "loud"}, "CONSOLE_LOG_LEVEL='loud' is rejected: it must be one of"),
        ({**KEYS, "DURABLE_WORKERS_EXPECTED": "some"}, "DURABLE_WORKERS_EXPECTED='some' is rejected: it must be"),
    ],
)
def test_a_console_that_everybody_could_use_does_not_start(variables: dict[str, str], sentence: str) -> None:
    told = run(*SERVE, env={"BACKEND_API_KEY": "", **variables})
    assert (told.returncode, told.stderr.count("\n")) == (1, 1)
    assert told.stderr.startswith(sentence)
    assert "hidden" not in told.stderr


@pytest.mark.integration
def test_it_shows_an_application_that_it_knows_nothing_of(stack: Stack, tmp_path: Path) -> None:
    port = free_port()
    variables = {**KEYS, "DURABLE_QUEUES": "celery,reports", "DURABLE_WORKERS_EXPECTED": "1", "DURABLE_BEAT": "shop"}
    console = Program([*SERVE, f"--port={port}"], tmp_path / "console.log", {**stack.env, **variables})
    console.wait_for_output("Uvicorn running")
    url = f"http://127.0.0.1:{port}"
    people, monitoring = ({"X-API-Key": KEYS[name]} for name in ("BACKEND_API_KEY", "METRICS_API_KEY"))
    assert httpx.get(f"{url}/health").json() == {"status": "healthy"}
    assert httpx.get(f"{url}/health/celery").status_code == 503
    stack.redis.client(0).lpush("reports", b"no task of ours")
    stack.start_worker()
    wait_for(lambda: httpx.get(f"{url}/health/celery").status_code == 200, seconds=30)

    def counted(*lines: str) -> bool:
        return {*lines} <= {*httpx.get(f"{url}/metrics", headers=monitoring).text.splitlines()}

    counts = 'celery_queue_length{queue="reports"} 1.0', "celery_workers_alive 1.0", "celery_beat_active 0.0"
    wait_for(lambda: counted(*counts), seconds=30)
    stack.redis.client(0).set("durable:beat:shop", "the token of one of the beats")
    wait_for(lambda: counted("celery_beat_active 1.0"), seconds=30)
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.get(f"{url}/status", headers=monitoring).status_code == 401
    firing = {"status": "firing", "labels": {"alertname": "DiskFilling", "severity": "critical"}}
    notification = {"groupKey": "one", "alerts": [firing]}
    assert httpx.post(f"{url}/status/alerts", json=notification).status_code == 401
    assert httpx.post(f"{url}/status/alerts", json=notification, headers=monitoring).status_code == 204

    def shown() -> bool:
        page = httpx.get(f"{url}/status", headers=people)
        assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
        return all(word in page.text for word in ("Console", "reports", "DiskFilling"))

    wait_for(shown, seconds=30)
    # uvicorn ends in order, and then as if by the signal.
    assert console.stop() == -signal.SIGTERM
    assert not [key for key in KEYS.values() if key in console.output()]


@pytest.mark.integration
def test_it_says_so_while_redis_is_away(stack: Stack, tmp_path: Path) -> None:
    port = free_port()
    console = Program([*SERVE, f"--port={port}"], tmp_path / "console.log", {**stack.env, **KEYS})
    console.wait_for_output("Uvicorn running")
    stack.redis.stop()
    url, headers = f"http://127.0.0.1:{port}", {"X-API-Key": KEYS["BACKEND_API_KEY"]}
    assert "celery_broker_up 0.0" in httpx.get(f"{url}/metrics", headers=headers).text
    assert "Redis does not answer" in httpx.get(f"{url}/status", headers=headers).text
    alerts = httpx.post(f"{url}/status/alerts", json={"groupKey": "one", "alerts": []}, headers=headers)
    assert (alerts.status_code, alerts.headers["retry-after"]) == (503, "5")
    assert httpx.get(f"{url}/health").status_code == 200
    console.stop()
