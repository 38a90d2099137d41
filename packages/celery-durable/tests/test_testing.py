"""The pytest plugin for applications: its example in README runs, and a wait that fails says why."""

import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from celery_durable.testing import wait_for

README = Path(__file__).parents[1] / "README.md"
APPLICATION = """
import time
from celery import Celery

app = Celery("proj")


@app.task
def ship(what):
    time.sleep(1)
    return f"{what} is on its way"
"""


@pytest.mark.integration
def test_the_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(import signal\n.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "proj.py").write_text(APPLICATION)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["celery_durable.testing"]')
    (tmp_path / "test_proj.py").write_text(example)
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir=.", "test_proj.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1].startswith("1 passed"), run.stdout + run.stderr


def test_a_wait_returns_the_first_true_value() -> None:
    numbers = count()
    assert wait_for(lambda: next(numbers)) == 1


def test_a_wait_that_fails_shows_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"^the queue is empty: not within 0\.1 s, but \[\]$"):
        wait_for(list, "the queue is empty", seconds=0.1)
