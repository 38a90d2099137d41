"""What `durable-admin canary` says of a worker; and what tries a release before it is live."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ADMIN, REPOSITORY, RedisServer, Stack, start_worker, wait_until

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


def test_a_worker_is_proven_to_run_tasks(stack: Stack, tmp_path: Path) -> None:
    def canary(node: str) -> subprocess.CompletedProcess[str]:
        command = [*ADMIN, "canary", f"--node={node}@{platform.node()}", "--within=5"]
        env = {**os.environ, **stack.env}
        return subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    missing = canary("second")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "does not answer" in missing.stderr
    workers = [start_worker(tmp_path / f"{name}.log", stack.env, name=name) for name in ("first", "second")]
    for name in ("first", "second"):
        found = canary(name)
        assert found.returncode == 0, found.stderr
        assert f"{name}@{platform.node()} has run" in found.stdout
    wait_until(stack.nothing_waits)
    for worker in workers:
        worker.stop()


def test_a_task_runs_before_its_release_is_live(redis_server: RedisServer) -> None:
    defaults: dict[str, Any] = yaml.safe_load((REPOSITORY / "roles/stack/defaults/main.yml").read_text())
    env = redis_server.environment(0, 1)
    tried = run(defaults["deploy_trial"], env)
    assert tried.returncode == 0, tried.stderr
    fault = "from app.agents.tasks import example_task; example_task.STEPS = None; "
    assert run(fault + defaults["deploy_trial"], env).returncode != 0
