"""The harness itself: does it see what it is there to see?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.kinds import REVOKED, SUCCESS, Sent, began_too_early, ran_although_revoked, ticks
from tests.chaos.load import Load
from tests.chaos.probe import sitecustomize as probe
from tests.chaos.row import Result, count_repeats, judge_beat, judge_other_kinds

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
        ([start(), end("REJECTED"), start(), end()], 0, 0, 0),
        ([start(), end("REJECTED"), start(), start(), end()], 1, 0, 0),
        ([start(), end("REJECTED"), start(), end(), start(), end()], 1, 0, 1),
        ([start(), start(), end("REJECTED"), start(alive=[17]), end(), end()], 1, 1, 0),
    ],
    ids=[
        *("once", "its process died", "retried", "twice at once", "done already"),
        *("rejected", "rejected, and its process died", "rejected, but done already", "rejected, and twice at once"),
    ],
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


def sent(kind: str, *ids: str, confirmed: float | None = None) -> Sent:
    return Sent(kind, [*ids], [*ids], confirmed)


def event(kind: str, task_id: str, at: float) -> dict[str, Any]:
    return {"event": kind, "id": task_id, "time": at}


@pytest.mark.parametrize(
    ("order", "early"),
    [
        ("start a, start b, done a, done b, start callback", set()),
        ("start a, start b, done a, start callback, done b", {"callback"}),
        ("start a, done a, start callback", {"callback"}),
        ("start a, start a, done a, start b, done b, start callback, start callback", set()),
        ("start a, done a, start b, done b", set()),
    ],
    ids=["after its parts", "before the last", "without one", "parts that ran again", "not yet"],
)
def test_a_chords_callback_comes_after_its_parts(order: str, early: set[str]) -> None:
    words = (each.split() for each in order.split(", "))
    events = [event(kind, task_id, at) for at, (kind, task_id) in enumerate(words)]
    assert began_too_early([sent("chord", "a", "b", "callback")], events) == early


def test_a_link_of_a_chain_comes_after_the_one_before() -> None:
    chain = [sent("chain", "a", "b")]
    ran = [event("start", "a", 1), event("done", "a", 2), event("start", "b", 3)]
    assert began_too_early(chain, ran) == set()
    assert began_too_early(chain, [ran[0], ran[2]]) == {"b"}


def test_a_revoked_task_must_not_run_once_that_is_confirmed() -> None:
    revoked = [sent("revoked", "a", confirmed=5.0), sent("revoked", "b"), sent("countdown", "c")]
    runs = [event("start", name, at) for name in ("a", "b", "c") for at in (4.0, 6.0)]
    assert ran_although_revoked(revoked, runs) == {"a"}
    assert ran_although_revoked(revoked, [event("start", "a", 4.0)]) == set()
    assert [each.ends for each in revoked] == [{REVOKED}, {SUCCESS, REVOKED}, {SUCCESS}]


def test_one_message_of_a_client_may_be_lost_where_the_fault_cuts_it_off_and_nowhere_else() -> None:
    others = [sent("chain", "a", "b"), sent("countdown", "c")]
    forgets = replace(SOME_FAULT, forgets=True)
    for fault, unfinished, left in (
        (SOME_FAULT, {"b": ""}, {"b"}),
        (forgets, {"b": "", "of the API": ""}, {"of the API"}),
        (forgets, {"b": "", "c": ""}, {"b", "c"}),
    ):
        judge_other_kinds(fault, others, [], unfinished, Result("host", "fault"))
        assert unfinished.keys() == left


@pytest.mark.parametrize(
    ("planned", "forgets", "problem"),
    [
        ([1, 3, 5, 7, 9], False, ""),
        ([1, 3, 3.5, 5.5, 9], False, "Beat sent two runs within 0.5 s."),
        ([1, 3, 3.5, 5.5, 9], True, ""),
        ([1, 3], False, "Beat sent nothing for 97 s."),
        ([], False, "Beat sent nothing for 100 s."),
    ],
)
def test_beat_sends_each_run_once_and_goes_on(planned: list[float], forgets: bool, problem: str) -> None:
    result, load = Result("host", "fault"), SimpleNamespace(began=0.0, ended=10.0 if len(planned) > 2 else 100.0)
    events = [event("planned", f"{at}", at) for at in planned]
    judge_beat(replace(SOME_FAULT, forgets=forgets), cast("Load", load), events, result, slack=1)
    assert result.problems == ([problem] if problem else [])


def test_a_run_of_beat_is_accepted_when_the_broker_has_it() -> None:
    events = [event(kind, task_id, 1) for kind, task_id in (("planned", "a"), ("sent", "a"), ("planned", "b"))]
    assert [(each.ids, each.accepted) for each in ticks(events)] == [(["a"], ["a"]), (["b"], [])]


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
