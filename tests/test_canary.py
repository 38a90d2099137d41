"""What playbooks/files/canary.py says of tasks, next to a real worker; and what tries a release before it is live."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import REPOSITORY, Api, RedisServer, Stack, start_worker

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


def test_the_host_that_has_run_a_task_is_told(stack: Stack, tmp_path: Path) -> None:
    env = stack.env
    api = Api(tmp_path / "api.log", env)
    canary = (REPOSITORY / "playbooks/files/canary.py").read_text()
    ids = [api.enqueue({}), api.enqueue({})]
    host = platform.node()
    waiting = run(canary, env, "1", host, *ids)
    assert waiting.returncode == 2
    assert "none of 2 tasks has run here within 1 s, 2 wait" in waiting.stderr

    worker = start_worker(tmp_path / "worker.log", env)
    here = run(canary, env, "30", host, *ids)
    assert here.returncode == 0, here.stderr
    assert f"test@{host} has run" in here.stderr
    assert run(canary, env, "30", "elsewhere", *ids).returncode == 3
    worker.stop()
    api.stop()


def test_a_task_runs_before_its_release_is_live(redis_server: RedisServer) -> None:
    defaults: dict[str, Any] = yaml.safe_load((REPOSITORY / "roles/stack/defaults/main.yml").read_text())
    env = redis_server.environment(0, 1)
    tried = run(defaults["deploy_trial"], env)
    assert tried.returncode == 0, tried.stderr
    fault = "from app.agents.tasks import example_task; example_task.STEPS = None; "
    assert run(fault + defaults["deploy_trial"], env).returncode != 0
