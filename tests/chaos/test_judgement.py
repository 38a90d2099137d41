"""The harness itself: does it see what it is there to see?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.probe import sitecustomize as probe
from tests.chaos.row import Result, count_repeats

SOME_FAULT = FAULTS[0]
AGENT = SimpleNamespace(name="example_agent_task")


def start(alive: list[int] | None = None) -> dict[str, Any]:
    return {"event": "start", "id": "task", "alive": alive or []}


def end(state: str = "SUCCESS") -> dict[str, Any]:
    return {"event": "end", "id": "task", "state": state}


@pytest.mark.parametrize(
    ("events", "repeated", "overlapping", "unexplained"),
    [
        ([start(), end()], 0, 0, 0),
        ([start(), start(), end()], 1, 0, 0),
        ([start(), end("RETRY"), start(), end()], 1, 0, 0),
        ([start(), start(alive=[17]), end(), end()], 1, 1, 0),
        ([start(), end(), start(), end()], 1, 0, 1),
    ],
    ids=["once", "its process died", "retried", "twice at once", "done already"],
)
def test_a_second_start_is_judged_by_what_became_of_the_first(
    events: list[dict[str, Any]], repeated: int, overlapping: int, unexplained: int
) -> None:
    result = Result("host", "fault")
    count_repeats(events, SOME_FAULT, result)
    assert (result.repeated, result.overlapping, result.unexplained) == (repeated, overlapping, unexplained)


def test_redis_may_forget_only_where_the_fault_makes_it() -> None:
    result = Result("host", "fault")
    count_repeats([start(), end(), start(), end()], replace(SOME_FAULT, forgets=True), result)
    assert (result.forgotten, result.unexplained) == (1, 0)


def test_the_probe_sees_whether_the_first_run_still_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LEDGER", tmp_path / "ledger.jsonl")
    probe.started("task", AGENT)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        monkeypatch.setattr(os, "getpid", lambda: other.pid)
        probe.started("task", AGENT)
        monkeypatch.undo()
        monkeypatch.setattr(probe, "LEDGER", tmp_path / "ledger.jsonl")
        probe.ended("task", AGENT, "SUCCESS")
        probe.started("task", AGENT)
        other.kill()
    probe.started("another task", AGENT)
    probe.started("a gate's task", SimpleNamespace(name="celery.accumulate"))
    probe.started("task", AGENT)
    events = [json.loads(line) for line in probe.LEDGER.read_text().splitlines()]
    assert [event.get("alive") for event in events] == [[], [os.getpid()], None, [other.pid], [], [os.getpid()]]
