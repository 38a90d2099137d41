"""What `durable-admin canary` says of a worker; and what tries a release before it is live."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.support import ADMIN, REPOSITORY, RedisServer, Stack, wait_until

pytestmark = pytest.mark.integration


def run(code: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as a host does, which gets it through a pipe."""
    return subprocess.run(
        [sys.executable, "-", *arguments],
        input=code,
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def canary(stack: Stack, node: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [*ADMIN, "canary", f"--node={node}@{platform.node()}", *arguments],
        env={**os.environ, **stack.env},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_worker_is_proven_to_run_tasks(stack: Stack) -> None:
    missing = canary(stack, "second")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "does not answer" in missing.stderr
    for name in ("first", "second"):
        stack.start_worker("--concurrency=1", name=name)
    for name in ("first", "second"):
        found = canary(stack, name)
        assert found.returncode == 0, found.stderr
        assert f"{name}@{platform.node()} has run" in found.stdout
    wait_until(stack.nothing_waits)


def test_a_busy_worker_is_not_proven(stack: Stack) -> None:
    stack.start_worker("--concurrency=1")
    stack.send("sleeping.delay(30)")
    wait_until(lambda: stack.redis.client(0).llen("celery") == 0)
    late = canary(stack, "test", "--within=2")
    assert (late.returncode, late.stdout) == (1, "")
    assert "has run none of 4 tasks in time, and 4 wait" in late.stderr


def test_the_host_that_has_run_a_task_is_told(stack: Stack) -> None:
    ids = stack.send("sleeping.delay(0)", "sleeping.delay(0)")
    waiting = canary(stack, "", "--within=1", *ids)
    assert waiting.returncode == 1
    assert "none of 2 tasks in time, and 2 wait" in waiting.stderr
    stack.start_worker()
    here = canary(stack, "", "--within=30", *ids)
    assert here.returncode == 0, here.stderr
    assert f"test@{platform.node()} has run" in here.stdout
    assert canary(stack, "other", *ids).returncode == 3


def test_a_task_runs_before_its_release_is_live(redis_server: RedisServer) -> None:
    described: dict[str, Any] = yaml.safe_load((REPOSITORY / "app/platform.yml").read_text())
    env = redis_server.environment(0, 1)
    tried = run(described["deploy_trial"], env)
    assert tried.returncode == 0, tried.stderr
    fault = "from app.agents.tasks import example_task; example_task.STEPS = None; "
    assert run(fault + described["deploy_trial"], env).returncode != 0
