"""What is reported of a task: the lines that hosts pick from their logs, and the timeline that is made of them."""

import gzip
import json
import logging
import re
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from asgi_correlation_id import correlation_id

from app.logs import JsonFormatter
from celery_durable.task_ids import new_task_id
from hosttools import timeline
from tests.support import load_plugin

stack_timeline = load_plugin("roles/stack/filter_plugins/stack_timeline.py")

TASK, OTHER = new_task_id(), new_task_id()
CREATED = (uuid.UUID(TASK).int >> 80) / 1000
ACCESS = '10.0.0.1:1 - "POST /tasks/enqueue HTTP/1.1" 202'
POLL = f'10.0.0.1:1 - "GET /tasks/status/{TASK} HTTP/1.1" %d'


def text(service: str, message: str, after: float, error: BaseException | None = None, **extra: str) -> str:
    """Return a line as our services write it, some seconds after the task was made."""
    record = logging.makeLogRecord(
        {"msg": message, "levelname": "INFO", "exc_info": error and (type(error), error, None), **extra}
    )
    record.created = CREATED + after
    correlation_id.set(extra.get("request_id"))  # as the API's middleware does
    return JsonFormatter(service).format(record)


class Journal:
    """Stands for journalctl: gives out entries as ``--output=json`` does, those alone that match."""

    def __init__(self, host: str = "one") -> None:
        """Begin with an empty journal of ``host``."""
        self.host = host
        self.entries: list[dict[str, Any]] = []

    def add(self, unit: str, message: str | list[int], after: float, pid: int = 4711) -> None:
        """Write a line of a unit; process 1 is systemd, and its line is about the unit."""
        entry = {"MESSAGE": message, "_PID": str(pid), "_HOSTNAME": self.host, "PRIORITY": "6"}
        entry["UNIT" if pid == 1 else "_SYSTEMD_UNIT"] = f"{unit}.service"
        self.entries.append({**entry, "__REALTIME_TIMESTAMP": str(int((CREATED + after) * 1e6))})

    def __call__(self, units: list[str], since: float, *options: str) -> Iterator[dict[str, Any]]:
        """Do what the arguments say."""
        for entry in self.entries:
            unit = entry.get("UNIT", entry.get("_SYSTEMD_UNIT"))
            if not any(fnmatch(unit, f"{pattern}.service") for pattern in units):
                continue
            if int(entry["__REALTIME_TIMESTAMP"]) / 1e6 < since or ("_PID=1" in options and entry["_PID"] != "1"):
                continue
            pattern = next((option[7:] for option in options if option.startswith("--grep=")), "")
            message = entry["MESSAGE"]
            known = bytes(message).decode(errors="replace") if isinstance(message, list) else message
            if re.search(pattern, known):
                yield entry


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    """A journal to write to and read from."""
    journal = Journal()
    monkeypatch.setattr(timeline, "journalctl", journal)
    return journal


def read(files: Path) -> list[Any]:
    """Return what this host says."""
    lines: list[Any] = timeline.timeline(TASK, "typesafe", files, CREATED - 5)
    return lines


def host(name: str, lines: list[Any], state: str = "", oldest: str = "2020", created: str = "2021") -> dict[str, Any]:
    """Return a host's variables after it was read."""
    told = {
        "created": created,
        "oldest": oldest,
        "state": state,
        "lines": [asdict(line) for line in lines],
    }
    return {"inventory_hostname": name, "timeline_read": {"stdout": json.dumps(told)}}


def line(after: float, message: str, about_unit: bool = False) -> Any:
    """Return a line as a host tells it."""
    return timeline.Line(timeline.moment(CREATED + after), "one", "typesafe-celery", "INFO", message, "", about_unit)


def test_lines_of_the_task_and_of_its_request_are_found_and_no_others(journal: Journal, tmp_path: Path) -> None:
    journal.add("typesafe-api", text("api", "Task accepted", 0, task_id=TASK, request_id="r.1"), 0)
    journal.add("typesafe-api", text("api", ACCESS, 0.001, request_id="r.1"), 0.001)
    journal.add("typesafe-api", text("api", ACCESS, 0.002, request_id="r-1"), 0.002)
    journal.add("typesafe-celery", text("celery_worker", "Task started", 1, task_id=TASK, request_id="r.1"), 1)
    journal.add("typesafe-celery", text("celery_worker", "Task started", 1, task_id=OTHER, request_id="r.1"), 1)
    journal.add("typesafe-celery", text("celery_worker", "ready.", 1), 1)
    journal.add("typesafe-api", text("api", "2 tasks accepted", 2, task_ids=f"{OTHER} {TASK}", request_id="r.1"), 2)
    journal.add("typesafe-api", text("api", "1 tasks accepted", 2, task_ids=OTHER, request_id="r.1"), 2)
    assert [(line.unit, line.message) for line in read(tmp_path)] == [
        ("typesafe-api", "Task accepted"),
        ("typesafe-celery", "Task started"),
        ("typesafe-api", "2 tasks accepted"),
        ("typesafe-api", ACCESS),
    ]


def test_a_client_that_waits_does_not_fill_the_timeline(journal: Journal, tmp_path: Path) -> None:
    for status in (200, 200, 404):
        journal.add("typesafe-api", text("api", POLL % status, 1, request_id=str(status)), 1)
    assert [line.message for line in read(tmp_path)] == [POLL % 404]


def test_what_systemd_says_of_units_is_told_apart(journal: Journal, tmp_path: Path) -> None:
    journal.add("typesafe-celery", "Main process exited, code=killed, status=9/KILL", 1, pid=1)
    assert [(line.message, line.about_unit) for line in read(tmp_path)] == [
        ("Main process exited, code=killed, status=9/KILL", True)
    ]


def test_an_error_is_told_with_its_last_line(journal: Journal, tmp_path: Path) -> None:
    failed = text("celery_worker", "Task failed: ValueError", 1, ValueError("no answer"), task_id=TASK)
    journal.add("typesafe-celery", failed, 1)
    assert [line.message for line in read(tmp_path)] == ["Task failed: ValueError (ValueError: no answer)"]


def test_a_line_that_is_no_json_or_no_text_is_told_as_it_is(journal: Journal, tmp_path: Path) -> None:
    journal.add("typesafe-celery", f"Killed with {TASK}", 1)
    journal.add("typesafe-celery", [*f"\x80 {TASK}".encode("latin-1")], 2)
    assert [line.message for line in read(tmp_path)] == [f"Killed with {TASK}", f"\ufffd {TASK}"]


def test_supervisors_log_files_are_read_rotated_ones_too(journal: Journal, tmp_path: Path) -> None:
    journal.add("typesafe-api", text("api", "Task accepted", 0, task_id=TASK, request_id="r1"), 0)
    lines = [text("celery_worker", name, 1, task_id=TASK, request_id="r1") for name in ("started", "finished")]
    with gzip.open(tmp_path / "celery-worker.log.2.gz", "wt") as old:
        old.write(f"{lines[0]}\n{text('celery_worker', 'other', 1, task_id=OTHER)}\n")
    (tmp_path / "celery-worker.log").write_text(f"{lines[1]}\n")
    told = [(line.unit, line.message) for line in read(tmp_path)]
    assert told[0] == ("typesafe-api", "Task accepted")
    assert sorted(told[1:]) == [("celery-worker", "finished"), ("celery-worker", "started")]


def test_what_supervisor_says_of_the_workers_is_told(tmp_path: Path) -> None:
    log = tmp_path / "supervisord.log"
    log.write_text(
        "2026-01-31 12:00:00,123 INFO spawned: 'other' with pid 1\n"
        "2026-01-31 12:00:01,456 WARN exited: typesafe-celery-worker (terminated by SIGKILL; not expected)\n"
    )
    [line] = timeline.supervisor(log, 0, "typesafe")
    assert line.message == "exited: typesafe-celery-worker (terminated by SIGKILL; not expected)"
    assert (line.time[-10:-6], line.level, line.about_unit) == (".456", "WARNING", True)


def test_the_timeline_is_in_the_order_of_time_and_ends_with_the_state() -> None:
    hosts = [host("two", [line(2, "finished"), line(1, "started")]), host("one", [line(0, "accepted")], "SUCCESS")]
    told = stack_timeline.task_timeline(hosts, TASK)
    assert [sentence.split()[-1] for sentence in told] == ["accepted", "started", "finished", "SUCCESS"]
    assert told[-1] == "State now: SUCCESS"


def test_a_line_that_two_hosts_have_is_told_once() -> None:
    told = stack_timeline.task_timeline([host("one", [line(1, "started")]), host("logs", [line(1, "started")])], TASK)
    assert len([sentence for sentence in told if "started" in sentence]) == 1


@pytest.mark.parametrize(("state", "later_is_told"), [("SUCCESS", False), ("PENDING", True)])
def test_what_units_did_is_told_until_the_task_has_ended(state: str, later_is_told: bool) -> None:
    lines = [line(0, "accepted"), line(1, "killed", about_unit=True), line(2, "ended"), line(3, "later", True)]
    told = stack_timeline.task_timeline([host("one", lines, state)], TASK)
    assert any("killed" in sentence for sentence in told)
    assert any("later" in sentence for sentence in told) is later_is_told


def test_a_task_without_a_line_is_one_of_old_or_of_elsewhere() -> None:
    [old, _] = stack_timeline.task_timeline([host("one", [], "404: no", oldest="2022"), host("two", [])], TASK)
    assert "reach back to 2022 only" in old
    assert "of one" in old
    [elsewhere, _] = stack_timeline.task_timeline([host("one", [], "404: no"), host("two", [])], TASK)
    assert "it was never accepted here" in elsewhere


@pytest.mark.parametrize("state", ["SUCCESS", "PENDING", "FAILURE: broken", "410: its result has ended"])
def test_a_task_that_the_api_knows_was_accepted_whatever_the_logs_have_lost(state: str) -> None:
    told = stack_timeline.task_timeline([host("one", [], state), host("two", [])], TASK)
    assert "but it was accepted" in told[0]
    assert not any("never accepted" in sentence for sentence in told)


def test_nothing_is_said_of_what_could_not_be_read() -> None:
    failed = {"inventory_hostname": "two", "timeline_read": {"rc": 1, "stdout": "Traceback (most recent call last):"}}
    without_logs = host("redis", [], oldest="")
    for hosts in ([host("one", []), failed], [host("one", []), {"inventory_hostname": "two"}], [without_logs]):
        told = stack_timeline.task_timeline(hosts, TASK)
        assert any("is not known" in sentence for sentence in told)
        assert not any("never accepted" in sentence for sentence in told)
    assert "never accepted" in stack_timeline.task_timeline([host("one", []), without_logs], TASK)[0]


def test_a_host_that_is_away_is_named() -> None:
    away = {"inventory_hostname": "two", "timeline_read": {"unreachable": True}}
    assert "two cannot be read" in stack_timeline.task_timeline([host("one", [line(0, "accepted")]), away], TASK)[-2]
    assert len(stack_timeline.task_timeline([away], TASK)) == 1


@pytest.mark.parametrize("name", ["nightly", "Report (2026)[1]", "0f0e8400-e29b-41d4-a716-446655440000"])
def test_an_id_that_its_sender_has_chosen_is_found(journal: Journal, tmp_path: Path, name: str) -> None:
    journal.add("typesafe-celery", text("celery_worker", "Task started", 1, task_id=name), 1)
    journal.add("typesafe-celery", text("celery_worker", "Task started", 1, task_id=OTHER), 1)
    assert timeline.created(name) is None
    assert [line.message for line in timeline.timeline(name, "typesafe", tmp_path, 0)] == ["Task started"]
