"""What the runbooks for workers make of what they see: states, causes, remedies, plans."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jinja2
import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from app.logs import JsonFormatter
from hosttools import debug_mode, masking, process, releases, workers
from hosttools.process import Result
from hosttools.redis_client import Instance, Redis
from hosttools.workers import start, supervision
from tests.support import REPOSITORY, load_plugin

filters = load_plugin("roles/stack/filter_plugins/stack_workers.py")

MIB = 2**20


def worker(state: str = "running", **further: Any) -> dict[str, Any]:
    """Return what is seen of a worker."""
    process = {"pid": 7, "age": 500, "rss": 70, "pss": 40, "halted": 0}
    seen = {"unit": "typesafe-celery", "node": "default@h", "state": state, "enabled": True, "ends": 0, "oom_kills": 0}
    words = {"status": "", "last_exit": "", "last_log": "", "memory_max": 0, "processes": [process]}
    return {**seen, **words, **further}


def host(*seen: dict[str, Any], name: str = "h", **further: Any) -> dict[str, Any]:
    """Return a host's variables after it was examined."""
    told = {"workers": list(seen), "obstacle": {}, "releases": {"live": "b", "others": ["a"]}, **further}
    return {"inventory_hostname": name, "workers_examined": {"stdout": json.dumps(told)}}


def redis(signs: dict[str, int] | None) -> dict[str, Any]:
    """Return the variables of the broker's host."""
    return {"inventory_hostname": "r", "workers_examined": {"stdout": json.dumps({"signs": signs})}}


def judge(*hosts: dict[str, Any]) -> dict[str, Any]:
    """Return the first worker as it was judged."""
    found: dict[str, Any] = filters.worker_findings(list(hosts))[0]
    return found


def test_a_healthy_worker_needs_nothing() -> None:
    found = judge(host(worker()), redis({"default@h": 1}))
    assert (found["state"], found["remedy"], found["plan"]) == ("running", "", "")


@pytest.mark.parametrize(
    ("state", "remedy"),
    [("stopped", "start"), ("failed", "start"), ("halted", "restart"), ("masked", "install"), ("missing", "install")],
)
def test_each_state_has_its_remedy(state: str, remedy: str) -> None:
    found = judge(host(worker(state)), redis({"default@h": 99}))
    assert found["remedy"] == remedy
    assert "typesafe-celery on h" in found["plan"]


def test_one_that_is_not_enabled_is_enabled() -> None:
    found = judge(host(worker(enabled=False)), redis({"default@h": 1}))
    assert found["remedy"] == "start"
    assert "would not start after a boot" in found["says"]


@pytest.mark.parametrize("signs", [{"default@h": 16}, {}])
def test_one_that_runs_without_a_sign_of_life_is_restarted(signs: dict[str, int]) -> None:
    found = judge(host(worker()), redis(signs))
    assert (found["state"], found["remedy"]) == ("silent", "restart")


def test_one_that_has_just_started_is_given_time() -> None:
    process = {"pid": 7, "age": 5, "rss": 70, "pss": 40, "halted": 0}
    assert judge(host(worker(processes=[process])), redis({}))["state"] == "running"


def test_nothing_is_started_while_redis_is_away() -> None:
    for found in filters.worker_findings([host(worker("stopped"), worker()), redis(None)]):
        assert found["remedy"] == "redis"
        assert found["plan"] == ""
        assert "Redis does not answer" in found["says"]


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("secrets", "deploy"),
        ("settings", "deploy"),
        ("password", "deploy"),
        ("venv", "rebuild"),
        ("release", "release"),
    ],
)
def test_what_keeps_it_from_starting_is_repaired_not_started(kind: str, remedy: str) -> None:
    obstacle = {"kind": kind, "says": "TASK_TIME_LIMIT is wrong"}
    found = judge(host(worker("crashing", ends=5), obstacle=obstacle), redis({}))
    assert found["remedy"] == remedy
    assert "TASK_TIME_LIMIT is wrong" in found["says"]


def test_a_loop_without_a_known_cause_shows_its_last_words() -> None:
    found = judge(host(worker("crashing", ends=5, last_log="who knows")), redis({}))
    assert found["remedy"] == "examine"
    assert "who knows" in found["says"]
    assert judge(host(worker("crashing", ends=5, oom_kills=1)), redis({}))["remedy"] == "memory"


@pytest.mark.parametrize(("seconds", "state"), [(5, "starting"), (61, "hanging")])
def test_a_start_that_does_not_end_is_no_start(seconds: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    since = int((time.monotonic() - seconds) * 1e6)
    shown = f"LoadState=loaded\nActiveState=activating\nStateChangeTimestampMonotonic={since}"
    monkeypatch.setattr(process, "run", lambda *words, **_: Result(0, shown if words[1] == "show" else "", ""))
    assert supervision.under_systemd("typesafe-celery")["state"] == state


def test_one_that_does_not_get_through_its_start_shows_its_last_words() -> None:
    found = judge(host(worker("hanging", last_log="Cannot connect")), redis({}))
    assert found["remedy"] == "examine"
    assert found["says"].endswith("does not get through its start - its last words: Cannot connect")


def test_the_plan_names_the_release() -> None:
    obstacle = {"kind": "release", "says": "no python"}
    broken = judge(host(worker("crashing"), obstacle=obstacle))
    assert "former release a" in filters.workers_plans([broken])[0]
    assert "former release z" in filters.workers_plans([broken], "z")[0]
    alone = judge(host(worker("crashing"), obstacle=obstacle, releases={"live": "b", "others": []}))
    assert "this checkout's release anew" in filters.workers_plans([alone])[0]


@pytest.mark.parametrize(("given", "units"), [({}, []), ({"release": "r"}, ["u", "u-slow"])])
def test_a_chosen_release_is_that_of_all_pools_of_the_host(given: dict[str, str], units: list[str]) -> None:
    loader = DataLoader()

    def load(file: str) -> Any:
        return loader.load_from_file(str(REPOSITORY / "playbooks" / file), trusted_as_template=True)

    (play,) = load("runbooks/worker_crashes.yml")
    (choose,) = [task for task in play["tasks"] if task["name"] == "Choose the workers to repair on this host"]
    found = [{"host": "a", "unit": "u", "remedy": "examine"}, {"host": "a", "unit": "u-slow", "remedy": ""}]
    known = {"inventory_hostname": "a", "workers_found": found, "workers_broken": found[:1], **given}
    templar = Templar(loader=loader, variables={**load("vars/workers.yml"), **play["vars"], **choose["vars"], **known})
    chosen = templar.template(choose["ansible.builtin.set_fact"]["workers_wanted"])
    assert [worker["unit"] for worker in chosen] == units


def test_memory_of_a_normal_worker_is_left_alone() -> None:
    memory = {"h": {"total": 4000, "available": 3000, "kernel_kills": 0, "largest": []}}
    assert filters.fat_workers([{**worker(memory_max=2000 * MIB), "host": "h"}], memory) == []


@pytest.mark.parametrize(
    ("sizes", "limit", "available", "why"),
    [
        ([70, 900], 1000, 3000, "80 %"),
        ([70, 400], 0, 300, "are left"),
        ([70, 350], 0, 3000, "grown"),
    ],
)
def test_who_takes_too_much(sizes: list[int], limit: int, available: int, why: str) -> None:
    memory = {"h": {"total": 4000, "available": available, "kernel_kills": 0, "largest": []}}
    processes = [{"pid": 7, "age": 500, "rss": size, "pss": size, "halted": 0} for size in sizes]
    fat = filters.fat_workers([{**worker(processes=processes, memory_max=limit * MIB), "host": "h"}], memory)
    assert len(fat) == 1
    assert why in fat[0]["why"]


def test_a_process_that_hundreds_of_runs_share_may_be_large() -> None:
    memory = {"h": {"total": 4000, "available": 3000, "kernel_kills": 0, "largest": []}}
    processes = [{"pid": 7, "age": 500, "rss": size, "pss": size, "halted": 0} for size in (70, 600)]
    shared = {**worker(processes=processes, memory_max=1000 * MIB, shared=True), "host": "h"}
    assert filters.fat_workers([shared], memory) == []
    (fat,) = filters.fat_workers([{**shared, "memory_max": 800 * MIB}], memory)
    assert "80 %" in fat["why"]


def test_who_shares_processes_is_seen() -> None:
    for option, shared in (("--pool=custom", True), ("--pool=prefork", False)):
        program = [sys.executable, "-c", "print(flush=True); input()", option]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout
            child.stdout.readline()  # its command line can be read only once it runs
            assert supervision.shares_processes(child.pid) is shared
            child.kill()


def test_times_are_told_task_by_task() -> None:
    run = {"1.0": 50.0, "60.0": 96.0, "+Inf": 100.0}
    figures = {"tasks": {"t": {"ended": {"succeeded": 90.0, "timed_out": 10.0}, "run": run}}}
    hosts = [
        {"inventory_hostname": "w", "times_examined": {"stdout": json.dumps({"hour": {"t": 4}})}},
        {"inventory_hostname": "a", "times_examined": {"stdout": json.dumps(figures)}},
    ]
    (sentence,) = filters.task_time_findings(hosts)
    assert sentence.startswith("t: 4 runs hit a time limit within the last hour (10 of 100 ever;")
    assert "half of all runs end within 1 s, 95 % within 60 s" in sentence
    assert filters.task_time_findings(hosts[1:]) == []


def render(template: str) -> str:
    """Return one of the role's templates for a pool of each kind."""
    pools = [{"name": "default"}, {"name": "slow", "queues": ["slow"]}]
    values = {
        "ansible_facts": {"distribution_major_version": "13"},
        "celery_worker_activate": False,
        "celery_worker_app": "app.agents.worker",
        "celery_worker_queues": ["celery"],
        "celery_worker_concurrency": 2,
        "celery_worker_egress": [{"name": "https", "ports": [443]}],
        "celery_worker_directory": "/opt/typesafe/backend",
        "celery_worker_log_level": "info",
        "celery_worker_name": "typesafe",
        "celery_worker_pools": pools,
        "celery_worker_secrets": ["TASK_SIGNING_KEY"],
        "__celery_worker_programs": ["typesafe-celery-worker", "typesafe-celery-worker-slow"],
        "__celery_worker_stop_seconds": 90,
        "pool": pools[1],
    }
    loader = jinja2.FileSystemLoader(REPOSITORY / "roles/celery_worker/templates")
    environment = jinja2.Environment(loader=loader, trim_blocks=True)  # noqa: S701 - no HTML
    for plugin in ("egress", "application"):
        environment.filters |= load_plugin(f"plugins/filter/{plugin}.py").FilterModule().filters()
    text: str = environment.get_template(template).render(values)
    return text + "\n"


def test_debug_mode_changes_nothing_of_a_unit_but_its_level() -> None:
    first, second, *command = debug_mode.drop_in(render("worker.service.j2")).splitlines()
    assert [first, second] == ["[Service]", "ExecStart="]
    assert command[0] == "ExecStart=/opt/typesafe/backend/venv/bin/celery -A app.agents.worker worker \\"
    assert command[-1] == "  --loglevel=debug --task-events"
    assert "  --queues=slow \\" in command


def test_debug_mode_changes_nothing_of_a_program_but_its_level() -> None:
    text = debug_mode.other_commands(render("supervisor.conf.j2"))
    assert text.count("[program:") == text.count("command=") == text.count("--loglevel=debug --task-events") == 2
    assert "  --queues=slow\n" in text
    assert "environment" not in text


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("typesafe-celery-worker  RUNNING   pid 31037, uptime 0:00:02", "running"),
        ("typesafe-celery-worker  STOPPED   Nov 23 04:54 AM", "stopped"),
        ("typesafe-celery-worker  BACKOFF   Exited too quickly (process log may have details)", "crashing"),
        ("typesafe-celery-worker  FATAL     Exited too quickly (process log may have details)", "failed"),
        ("typesafe-celery-worker: ERROR (no such process)", "missing"),
        ("unix:///var/run/supervisor.sock no such file", "stopped"),
    ],
)
def test_what_supervisor_says(line: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", lambda *command, **_: Result(0, line if command[1] == "status" else "", ""))
    assert supervision.under_supervisor("typesafe-celery-worker", "typesafe")["state"] == state


def test_what_systemd_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: str, **_: Any) -> Result:
        shown = (
            "LoadState=loaded\nActiveState=activating\nUnitFileState=enabled\nMainPID=0\nNRestarts=7\nMemoryMax=1024"
        )
        restarts = "Scheduled restart job\n" * 5 if any("MESSAGE_ID=5eb" in word for word in command) else ""
        return Result(0, shown if command[1] == "show" else restarts.strip())

    monkeypatch.setattr(process, "run", run)
    seen = supervision.under_systemd("typesafe-celery")
    assert (seen["state"], seen["ends"], seen["memory_max"]) == ("crashing", 5, 1024)


TRACEBACK = 'Traceback (most recent call last):\n  File "<string>", line 1, in <module>\n  File "{}", line 5\n{}'


@pytest.mark.parametrize(
    ("errors", "packages", "kind"),
    [
        ("TASK_TIME_LIMIT='x' is refused: a number.", 0, "settings"),
        (
            TRACEBACK.format("/opt/typesafe/releases/b/app/agents/worker.py", "SyntaxError: invalid syntax"),
            0,
            "release",
        ),
        (TRACEBACK.format("/opt/typesafe/releases/b/venv/lib/kombu/__init__.py", "ImportError: no"), 0, "venv"),
        (TRACEBACK.format("/opt/typesafe/releases/b/app/agents/worker.py", "ModuleNotFoundError: celery"), 1, "venv"),
    ],
)
def test_why_it_cannot_be_loaded(errors: str, packages: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: str, **_: Any) -> Result:
        return Result(packages, "", "No matching distribution") if "pip" in command else Result(1, "", errors)

    monkeypatch.setattr(process, "run", run)
    assert start._not_loaded("typesafe", "root")["kind"] == kind


@pytest.mark.parametrize("ends", [(124, 0), (0, 124)])
def test_a_busy_host_is_not_taken_for_a_broken_release(ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts as broken is taken away and built anew."""
    load, check = ends
    monkeypatch.setattr(
        process,
        "run",
        lambda *command, **_: Result(check if "pip" in command else load, "", "it did not end within 20 s"),
    )
    found = start._not_loaded("typesafe", "root")
    assert found["kind"] == "slow"
    told = judge(host(worker("stopped"), obstacle=found))
    assert told["remedy"] == "start"
    assert "nobody knows whether it could start again: it did not end within 20 s" in told["says"]


def test_a_broker_that_loads_its_data_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells the time all the same."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"*2\r\n$10\r\n1790000000\r\n$1\r\n1\r\n-LOADING Redis is loading the dataset in memory\r\n")
    monkeypatch.setattr(Instance, "connect", lambda *_: Redis(ours))
    assert workers.heartbeats("broker") is None
    theirs.close()


def test_last_words_hide_passwords() -> None:
    assert masking.last_words('x\n{"message": "Cannot connect to redis://worker:hunter22@h:1/0"}\n\n') == (
        "Cannot connect to redis://worker:**@h:1/0"
    )


def test_the_end_of_debug_mode_has_no_semicolon() -> None:
    """systemd-run of Debian 12 escapes them, and then nothing ends."""
    for workers_of in (debug_mode.Systemd("typesafe", ["default", "slow"]), debug_mode.Supervisor("typesafe")):
        assert ";" not in workers_of.end


def test_the_last_words_of_a_worker_are_its_exceptions_whole() -> None:
    error = OSError(13, "Permission denied", "/dev/shm/sem")  # noqa: S108 - only named
    record = logging.LogRecord(
        "x", logging.CRITICAL, "x.py", 1, "Unrecoverable: %r", (error,), (type(error), error, None)
    )
    told = masking.last_words(f"it starts\n{JsonFormatter('celery_worker').format(record)}\n")
    assert told.endswith("PermissionError: [Errno 13] Permission denied: '/dev/shm/sem'")


def test_no_runbook_chooses_a_release_that_was_gone_back_from_or_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(["live", "older", "before", "failed", "rolled-back"]):
        (tmp_path / "releases" / name).mkdir(parents=True)
        (tmp_path / "releases" / name / ".complete").touch()
        if name == "rolled-back":
            (tmp_path / "releases" / name / ".rolled-back").touch()
        moment = 315532800 if name == "failed" else 1.8e9 + number
        os.utime(tmp_path / "releases" / name, (moment, moment))
    (tmp_path / "backend").symlink_to(tmp_path / "releases/live")
    monkeypatch.setattr(releases, "starts", lambda *_: "")
    assert workers.releases(f"..{tmp_path}") == {"live": "live", "others": ["before", "older"]}
    assert releases.previous(tmp_path, "x", tmp_path / "releases/live") == str(tmp_path / "releases/before")
