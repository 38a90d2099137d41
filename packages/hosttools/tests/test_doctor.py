"""What the doctor finds on a host, and what it makes of it: causes before what follows from them."""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hosttools
from app.logs import JsonFormatter
from celery_durable.testing import RedisServer
from hosttools import files, findings, masking, process, procfs, redis_client, state, web
from hosttools.doctor import (
    api,
    broker,
    checks,
    connections,
    host,
    instances,
    monitoring,
    network,
    reasons,
    release,
    rights,
    units,
    workers,
)
from hosttools.process import Result
from tests.support import REPOSITORY, Program, load_plugin, start_worker

filters = load_plugin("roles/stack/filter_plugins/stack_doctor.py")
LAYERS = ("HOST", "NETWORK", "REDIS", "REACH", "RIGHTS", "FILES", "UNITS", "WORKERS", "QUEUES", "LATER")


def examined(name: str, *findings: dict[str, Any]) -> dict[str, Any]:
    """Return a host's variables after it was examined."""
    return {"inventory_hostname": name, "doctor_examined": {"stdout": json.dumps(findings)}}


def finding(severity: int, what: str, layer: int, runbook: str = "", **more: bool) -> dict[str, Any]:
    """Return what the doctor's script tells."""
    return {"severity": severity, "what": what, "runbook": runbook, "layer": layer, **more}


def told(*hosts: dict[str, Any]) -> list[str]:
    """Return what is found, in its order."""
    return [found["what"] for found in filters.doctor_findings(list(hosts))]


def test_nothing_is_nothing() -> None:
    assert filters.doctor_findings([examined("a"), examined("b")]) == []


def test_the_cause_comes_first() -> None:
    hosts = [
        examined(
            "api", finding(1, "no worker", findings.WORKERS, "NoWorkers"), finding(1, "no broker", findings.REACH)
        ),
        examined(
            "redis",
            finding(2, "an update waits", findings.LATER),
            finding(1, "redis-server@broker is failed", findings.REDIS, "RedisDown"),
            finding(1, "full", findings.HOST, "DiskFilling"),
        ),
    ]
    assert filters.doctor_sentences(filters.doctor_findings(hosts)) == [
        "CRITICAL redis: full -> docs/runbooks/DiskFilling.md",
        "CRITICAL redis: redis-server@broker is failed (perhaps a consequence) -> docs/runbooks/RedisDown.md",
        "CRITICAL api: no broker",
        "CRITICAL api: no worker -> docs/runbooks/NoWorkers.md",
        "warning redis: an update waits",
    ]


def test_a_suspect_goes_before_what_it_explains() -> None:
    suspect = finding(2, "unit file was changed", findings.FILES, suspect=True)
    assert told(examined("a", suspect, finding(1, "worker fails", findings.WORKERS)))[0] == "unit file was changed"


def test_what_says_more_goes_before_a_difference_and_that_before_what_follows() -> None:
    known = finding(2, "a route leads nowhere", findings.NETWORK, suspect=True)
    difference = finding(2, "the route is new", findings.NETWORK, suspect=True, difference=True)
    follows = finding(1, "no table", findings.NETWORK)
    assert told(examined("a", follows, difference, known)) == ["a route leads nowhere", "the route is new", "no table"]


def test_the_difference_next_to_the_first_broken_part_comes_first() -> None:
    near = finding(2, "Redis has another setting", findings.REDIS, suspect=True, difference=True)
    far = finding(2, "a sysctl differs", findings.HOST, suspect=True, difference=True)
    above = finding(2, "a file differs", findings.FILES, suspect=True, difference=True)
    broken, follows = finding(1, "Redis does not answer", findings.REACH), finding(1, "no worker", findings.WORKERS)
    order = ["Redis has another setting", "a sysctl differs", "Redis does not answer", "a file differs", "no worker"]
    assert told(examined("a", far, above, follows, broken, near)) == order


def test_a_suspect_goes_behind_what_needs_no_explanation() -> None:
    suspect = finding(2, "unit file was changed", findings.FILES, suspect=True)
    stopped = finding(1, "worker was stopped", findings.WORKERS, certain=True)
    assert told(examined("a", suspect, stopped)) == ["worker was stopped", "unit file was changed"]
    deeper = finding(1, "Redis does not answer", findings.REACH)
    assert told(examined("a", suspect, deeper)) == ["Redis does not answer", "unit file was changed"]


def test_a_suspect_alone_is_a_warning() -> None:
    (found,) = filters.doctor_findings([examined("a", finding(2, "changed", findings.FILES, suspect=True))])
    assert found["severity"] == 2


def test_notes_are_told_beside_something_critical_only() -> None:
    note, critical = finding(3, "booted", findings.LATER), finding(1, "down", findings.UNITS)
    assert told(examined("a", note)) == []
    assert told(examined("a", note, critical)) == ["down", "booted"]


def test_hosts_that_differ_are_told() -> None:
    def says(value: str) -> dict[str, Any]:
        return {"severity": 0, "what": "", "runbook": "", "facts": {"the application's code": value}}

    found = filters.doctor_findings([examined("a", says("1")), examined("b", says("1")), examined("c", says("2"))])
    assert [(one["host"], one["severity"]) for one in found] == [("c", 2)]
    assert "not the same as on a" in found[0]["what"]


def test_a_file_that_was_changed_goes_before_the_setting_in_it_that_differs() -> None:
    def says(value: str) -> dict[str, Any]:
        return {"severity": 0, "what": "", "runbook": "", "facts": {"the setting ENVIRONMENT": value}}

    changed = finding(2, "backend.env was changed by hand", findings.FILES, difference=True)
    usual = [examined(name, says("production")) for name in ("a", "b")]
    assert told(*usual, examined("c", changed, says("test")))[0] == changed["what"]


def test_a_silent_host_goes_before_all() -> None:
    silent = {"inventory_hostname": "b", "doctor_examined": {"unreachable": True, "msg": "No route to host"}}
    sentences = filters.doctor_sentences(
        filters.doctor_findings([examined("a", finding(1, "full", findings.HOST)), silent])
    )
    assert sentences[0].startswith(
        "CRITICAL b: Ansible does not reach it: No route to host (it is down, or the network"
    )
    assert sentences[0].endswith(" -> docs/runbooks/TargetDown.md")


def test_a_host_without_python_is_told() -> None:
    broken = {"inventory_hostname": "b", "doctor_examined": {"failed": True, "stdout": "", "stderr": "no python3"}}
    assert told(broken) == ["Ansible cannot look into it: no python3"]


def test_every_page_that_is_named_exists() -> None:
    pages = {page.stem for page in (REPOSITORY / "docs/runbooks").glob("*.md")}
    source = "".join(file.read_text() for file in Path(hosttools.__file__).parent.glob("doctor/*.py"))
    named = set(re.findall(rf'"(\w+)", (?:{"|".join(LAYERS)})\b', source))
    assert {"RedisDown", "NoWorkers", "drift", "MemoryLow"} <= named
    assert named <= pages


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"LoadState": "masked", "ActiveState": "inactive"}, "is masked"),
        ({"LoadState": "loaded", "ActiveState": "inactive", "Result": "success"}, "was stopped"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, "no unit file"),
        ({"LoadState": "loaded", "ActiveState": "active", "FreezerState": "frozen"}, "is frozen"),
        (
            {
                "LoadState": "loaded",
                "ActiveState": "activating",
                "SubState": "auto-restart",
                "Result": "exit-code",
                "ExecMainCode": "1",
                "ExecMainStatus": "203",
                "NRestarts": "7",
            },
            "fails again and again (7 restarts, exit-code, exit code 203)",
        ),
        (
            {
                "LoadState": "loaded",
                "ActiveState": "activating",
                "SubState": "start",
                "Result": "success",
                "NRestarts": "3",
            },
            "fails again and again (3 restarts)",
        ),
        (
            {"LoadState": "loaded", "ActiveState": "failed", "Result": "oom-kill", "ExecMainCode": "2"},
            "is failed (oom-kill",
        ),
    ],
)
def test_a_units_state_is_judged(properties: dict[str, str], words: str) -> None:
    found = list(units.state("no-such-unit", "NoWorkers", properties))
    assert words in found[0].what
    assert found[0].severity == findings.CRITICAL


def test_a_halted_process_is_named() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            assert list(units.halted("unit", "NoWorkers", findings.WORKERS, [str(child.pid)])) == []
            child.send_signal(signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)
            (found,) = units.halted("unit", "NoWorkers", findings.WORKERS, [str(child.pid)])
            assert f"kill -CONT {child.pid}" in found.what
            assert found.certain
        finally:
            child.kill()


@contextlib.contextmanager
def redis_that_says(*answers: bytes) -> Iterator[int]:
    """Serve one connection: an answer for each command, then silence; return the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                for answer in answers:
                    connection.recv(4096)
                    connection.sendall(answer)
                ended.wait(10)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        ended.set()


@pytest.mark.parametrize(
    ("answers", "words", "layer"),
    [
        (
            (b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",),
            "refuses the password of api",
            "RIGHTS",
        ),
        ((b"-ERR max number of clients reached\r\n",), "max number of clients", "REDIS"),
        ((b"+OK\r\n", b"-LOADING Redis is loading\r\n"), "LOADING", "REDIS"),
        ((b"+OK\r\n",), "does not answer within", "REACH"),
    ],
)
def test_what_a_client_of_redis_meets_is_named(
    answers: tuple[bytes, ...], words: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosttools, "TIMEOUT", 0.5)
    with redis_that_says(*answers) as port:
        (found,) = connections.reach(f"redis://api:hidden-password@127.0.0.1:{port}/0", "api", "127.0.0.1", [port])
    assert words in found.what
    assert found.layer == getattr(findings, layer)
    assert "hidden-password" not in found.what


def test_a_redis_that_answers_is_no_finding() -> None:
    with redis_that_says(b"+OK\r\n", b"+PONG\r\n", b"+PONG\r\n", b"+PONG\r\n") as port:
        assert connections.reach(f"redis://api:x@127.0.0.1:{port}/0", "api", "127.0.0.1", [port]) == []


def test_a_name_that_nobody_knows_is_told() -> None:
    (found,) = connections.reach("redis://api:x@no-such-host.invalid:1/0", "api", "no-such-host.invalid", [1])
    assert "the name no-such-host.invalid is unknown here" in found.what
    assert found.layer == findings.NETWORK


def test_a_secret_that_leads_elsewhere_is_told_without_its_password() -> None:
    (found,) = connections.reach("redis://api:hidden-password@elsewhere:1/0", "api", "redis1", [6380])
    assert "names api@elsewhere:1, the inventory api@redis1" in found.what
    assert "hidden-password" not in found.what


def test_quoted_logs_hold_no_secret() -> None:
    line = "cannot use redis://api:short@host:1 nor 0123456789abcdef0123456789abcdef"
    assert masking.quote(line) == "cannot use redis://api:**@host:1 nor **"


def test_a_check_that_fails_does_not_hide_the_others() -> None:
    def check() -> Iterator[Any]:
        yield findings.Finding(findings.CRITICAL, "seen", "")
        raise KeyError("x")

    seen, failed = checks.careful(check)
    assert seen.what == "seen"
    assert "could not look: KeyError" in failed.what


def test_a_failure_inside_a_check_leaves_what_is_found_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = ["ActiveState=active\nNRestarts=x", "LoadState=masked\nActiveState=inactive"]
    shown = {"show": "\n\n".join(blocks), "is-active": "inactive"}
    monkeypatch.setattr(process, "run", lambda *words, **_: Result(0, shown.get(words[1], "")))
    told = [found.what for found in units.check({"a": "NoWorkers", "b": "NoWorkers"})]
    assert "could not look: ValueError" in told[0]
    assert "b is masked" in told[1]
    assert "systemd-journald does not run" in told[2]


def test_what_hangs_is_told_and_hides_nothing() -> None:
    def hangs() -> Iterator[Any]:
        yield findings.Finding(findings.CRITICAL, "seen before", "")
        time.sleep(60)

    def other() -> Iterator[Any]:
        yield findings.Finding(findings.CRITICAL, "seen beside", "")

    began = time.monotonic()
    told = [found.what for found in checks.within(0.3, {"hangs": hangs, "other": other})]
    assert time.monotonic() - began < 5
    assert told[0] == "seen before"
    assert "hangs takes longer" in told[1]
    assert told[2] == "seen beside"


def test_a_command_that_hangs_is_ended() -> None:
    ended = process.run("sleep", "60", timeout=0.2)
    assert ended == Result(process.TIMED_OUT, "", "sleep did not end within 0.2 s")
    assert not process.RUNNING


def test_a_command_that_is_not_there_is_a_result() -> None:
    assert process.run("/no/such/program").code == process.NOT_FOUND


def test_systemd_that_does_not_answer_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(process.TIMED_OUT, "", "it did not end within 3 s"))
    (found,) = units.check({"a": "NoWorkers", "b": "NoWorkers"})
    assert (found.severity, found.layer) == (findings.CRITICAL, findings.HOST)
    assert "systemd does not answer" in found.what


@pytest.mark.parametrize("replies", [1, 2])
def test_workers_of_one_name_are_told(replies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [("default@h", [{"name": "celery"}])] * replies
    monkeypatch.setattr(workers, "questions", lambda _, method, **__: answers if method == "active_queues" else [])
    monkeypatch.setattr(workers, "commands", lambda *_: [("default@h", ["celery"])])
    told = [found.what for found in workers.check("no-such-app")]
    assert [what.partition(":")[0] for what in told] == ["2 workers are named default@h"] * (replies - 1)


def test_a_worker_that_is_silent_for_a_second_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = (b"+OK\r\n", b"+OK\r\n", b":1\r\n", b"*-1\r\n", b":1\r\n")
    with redis_that_says(*answers) as port:
        monkeypatch.setattr(files, "read", lambda _: f"redis://operator:x@127.0.0.1:{port}/0")
        monkeypatch.setattr(hosttools, "TIMEOUT", 0.5)
        assert workers.questions("app", "active_queues") == []


def test_the_debug_mode_is_no_change_by_hand(tmp_path: Path) -> None:
    drop_in = tmp_path / "90-debug-mode.conf"
    drop_in.write_text("[Service]\nExecStart=celery --loglevel=debug\n")
    (found,) = units.drop_in(str(drop_in), ["typesafe-celery"], findings.WORKERS)
    assert (found.severity, found.runbook) == (findings.NOTE, "debug-mode")


def test_a_drop_in_of_several_units_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "10-all.conf").write_text("[Service]\nMemoryMax=20M\n")
    shown = f"ActiveState=active\nDropInPaths={tmp_path}/10-all.conf"
    monkeypatch.setattr(process, "run", lambda *words, **_: Result(0, f"{shown}\n\n{shown}" * (words[1] == "show")))
    said = units.check({"redis-server": "RedisDown", "typesafe-api": "ApiDown"})
    (found,) = [each for each in said if "not ours" in each.what]
    assert found.what == f"{tmp_path}/10-all.conf, not ours, changes redis-server, typesafe-api: MemoryMax=20M"
    assert found.layer == findings.REDIS


def test_what_differs_is_a_finding_and_a_broken_record_is_one_too(tmp_path: Path) -> None:
    given = argparse.Namespace(app="typesafe", unit=[], redis=[], monitoring="")
    record = tmp_path / "healthy.json"
    assert list(state.differences(tmp_path, given)) == []
    record.write_text(json.dumps({"packages": {"celery": "5.7.0 (x)"}}))
    (found,) = state.differences(tmp_path, given)
    assert found.what == "in the release's venv the package celery is none instead of 5.7.0"
    record.write_text("no JSON")
    (failed,) = checks.careful(lambda: state.differences(tmp_path, given))
    assert "could not look: JSONDecodeError" in failed.what


def test_what_redis_says_goes_before_what_its_clients_meet() -> None:
    client = finding(1, "redis1 refuses the password", findings.RIGHTS, "BrokerUnreachable")
    server = finding(1, "Redis does not know the user", findings.RIGHTS, "RedisDenies")
    assert told(examined("api1", client), examined("redis1", server))[0] == "Redis does not know the user"


def test_a_stopped_worker_goes_before_what_the_api_sees_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"/metrics": (200, "celery_broker_up 1.0\ncelery_workers_alive 0.0\ncelery_beat_active 0.0\n")}
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, "active"))
    monkeypatch.setattr(web, "ask", lambda url, _: pages.get(url.removeprefix("http://x"), (200, "")))
    found = list(api.check("http://x", "/dev/null", 60, "app"))
    assert ("no beat holds the lease, nothing periodic is sent", "BeatMissing") in {
        (one.what, one.runbook) for one in found
    }
    sees = [vars(one) for one in found if "worker" in one.what]
    stopped = finding(1, "the worker was stopped", findings.WORKERS, "NoWorkers", certain=True)
    assert told(examined("api1", *sees), examined("worker1", stopped)) == [
        "the worker was stopped",
        "no worker is alive",
    ]


def test_a_stopped_api_is_not_started_by_asking_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("key")
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(1, "inactive"))
    monkeypatch.setattr(web, "ask", lambda *_: pytest.fail("it was asked"))
    assert list(api.check("http://x", str(key), 60, "app")) == []


def test_queues_that_cannot_be_read_are_not_called_a_lack_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, "active"))
    monkeypatch.setattr(web, "ask", lambda *_: (200, "celery_broker_up 0.0\ncelery_workers_expected 1.0\n"))
    assert [found.what for found in api.check("http://x", "/dev/null", 60, "app")][-1].startswith(
        "the API cannot read the queues"
    )


def test_a_full_queue_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "read", lambda _: "QUEUE_MAX_LENGTH='200'\n")
    figures = {'celery_queue_length{queue="full"}': 200.0, 'celery_queue_length{queue="long"}': 150.0}
    full, long = api.lengths(figures, "app")
    assert "the queue full is full, the API refuses tasks: 200 wait" in full.what
    assert (long.what, long.severity, long.runbook) == ("150 tasks wait in long", findings.WARNING, "")


@pytest.mark.parametrize(
    ("line", "unit_file", "port"),
    [
        ("Failed to create listening socket (127.0.0.1:8000): Address already in use", "", 8000),
        ("app.socket: Address already in use", "[Socket]\nListenStream=127.0.0.1:8000\n", 8000),
        ("12:30:01 # listening socket 0.0.0.0:6380: bind: Address already in use", "", 6380),
        ("cannot bind 10.0.0.12:8000: Address already in use", "", 8000),
        ("OSError: [Errno 98] Address already in use", "ExecStart=celery flower --port=5555", 5555),
        ("Address already in use", "ExecStart=x", 0),
    ],
)
def test_the_port_that_is_taken_is_known(line: str, unit_file: str, port: int) -> None:
    assert reasons.wanted_port(line, unit_file) == port


def logged(monkeypatch: pytest.MonkeyPatch, log: str) -> None:
    """Make the journal say this."""
    monkeypatch.setattr(process, "run", lambda *command, **_: Result(0, log if command[0] == "journalctl" else ""))


def test_a_wrong_directive_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    logged(monkeypatch, "Reading the configuration file, at line 7\n>>> 'maxmemry 5'\nBad directive or wrong number\n")
    assert "'maxmemry 5'" in reasons.because("redis-server@broker")


def test_a_cut_append_only_file_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    logged(
        monkeypatch, "1:M # Bad file format reading the append only file x.aof\nredis: Main process exited, code=1\n"
    )
    assert "Bad file format" in reasons.because("redis-server")


def test_a_supervisord_that_is_away_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(1, "unix:///run/supervisor.sock no such file"))
    (found,) = units.programs(["app-celery-worker"], "app")
    assert found.what.startswith("supervisord does not answer: unix:///run/supervisor.sock")


def test_a_process_without_free_descriptors_is_named() -> None:
    opens = "import resource, time; resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10)); "
    opens += "held = [open('/dev/null') for _ in range(7)]; print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", opens], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout
            child.stdout.readline()
            (found,) = units.crowded("unit", "ApiDown", findings.UNITS, [str(child.pid)])
            assert "of 10 possible files" in found.what
            assert list(units.crowded("unit", "ApiDown", findings.UNITS, [str(os.getpid())])) == []
        finally:
            child.kill()


def test_a_journal_that_does_not_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", lambda *words, **_: Result(1, "inactive" if "is-active" in words else ""))
    assert "systemd-journald does not run" in next(iter(units.check({}))).what


def test_half_installed_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    states = "ii |adduser\nit |libc-bin\niF |redis-server\n"
    monkeypatch.setattr(process, "run", lambda *words, **_: Result(0, states if words[0] == "dpkg-query" else ""))
    monkeypatch.setattr(host, "disks", list)
    monkeypatch.setattr(host, "busy", list)
    (half,) = (found for found in host.check() if "half installed" in found.what)
    assert half.what == "packages are half installed: redis-server: dpkg --configure -a"


def test_who_keeps_the_processors_busy_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as hog:
        looks = iter([{str(hog.pid): 0}, {str(hog.pid): 90 * (os.cpu_count() or 1)}])
        monkeypatch.setattr(procfs, "ticks", lambda: next(looks))
        monkeypatch.setattr(time, "sleep", lambda _: None)
        monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
        (found,) = host.busy()
        hog.kill()
    assert f"(process {hog.pid})" in found.what
    assert found.suspect


def test_a_directory_that_is_mounted_again_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    class ReadOnly:
        f_flag, f_files, f_favail = os.ST_RDONLY, 0, 0
        f_frsize, f_blocks, f_bfree, f_bavail = 4096, 10, 10, 10

    monkeypatch.setattr(os, "statvfs", lambda place: ReadOnly() if str(place) == "/var/lib" else real(place))
    assert "/var/lib is mounted read-only" in [found.what for found in host.disks()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path / "redis", durable=True, unixsocket=str(tmp_path / "s"))
    yield started
    started.stop()


def open_redis(server: RedisServer) -> tuple[Path, Any]:
    """Return its file and the doctor's connection to it."""
    local = socket.socket(socket.AF_UNIX)
    local.settimeout(hosttools.TIMEOUT)
    local.connect(server.settings["unixsocket"])
    connection = redis_client.Redis(local)
    connection.call("AUTH", server.password)
    return server.directory / "redis.conf", connection


def command(server: RedisServer, *words: str) -> None:
    """Let the administrator do something."""
    server.client(0).execute_command(*words)  # type: ignore[no-untyped-call]


def test_a_setting_that_the_file_does_not_name_is_compared_with_its_default(server: RedisServer) -> None:
    config, connection = open_redis(server)
    assert list(rights.settings("broker", config, connection)) == []
    server.client(0).config_set("proto-max-bulk-len", 1024 * 1024)
    (found,) = rights.settings("broker", config, connection)
    assert "has proto-max-bulk-len 1048576, its default is 536870912" in found.what


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("-touch",), "has lost +touch"),
        (("resetkeys", "~other"), "has lost ~celery %R~figures"),
        (("resetchannels",), "has lost &/0.celery.pidbox"),
        (("+@all", "~*"), "has more than"),
    ],
)
def test_rights_that_differ_from_the_file_are_told(server: RedisServer, change: tuple[str, ...], words: str) -> None:
    # Redis 7.0 writes +multi +exec +watch +unwatch as +@transaction -discard.
    commands = "+ping +client|setname +touch +multi +exec +watch +unwatch"
    rules = f"~celery %R~figures &/0.celery.pidbox {commands} (~app:* +@read -@dangerous)"
    config, connection = open_redis(server)
    line = f"on #{hashlib.sha256(b'password').hexdigest()} {rules}"
    config.write_text(f"{config.read_text()}user worker {line}\n")
    command(server, "ACL", "SETUSER", "worker", *re.findall(r"\([^)]*\)|\S+", line))
    assert list(rights.rights("broker", config, connection)) == []
    command(server, "ACL", "SETUSER", "worker", *change)
    assert words in next(iter(rights.rights("broker", config, connection))).what


def test_a_key_of_another_type_is_told(server: RedisServer) -> None:
    _, connection = open_redis(server)
    assert list(broker.shapes(connection)) == []
    server.client(0).set("celery", "x")
    (found,) = broker.shapes(connection)
    assert found.what.startswith("the broker's key celery is a string instead of a list")


def test_tasks_in_a_queue_that_nothing_names_are_told(server: RedisServer) -> None:
    _, connection = open_redis(server)
    task = json.dumps({"properties": {}, "headers": {"task": "a.b", "id": "1"}, "body": ""})
    client = server.client(0)
    for key in ("celery", "deferred:celery", "unacked:w@h:celery", "x.reply.celery.pidbox"):
        client.lpush(key, task)
    client.lpush("dead_letters", json.dumps({"reason": "x", "message": task}))
    client.lpush("app:list", "no task")
    client.set("app:other", task)
    assert list(broker.unnamed(connection, ["celery"])) == []
    assert list(broker.unnamed(connection, [])) == []  # nobody has said which there are
    client.lpush("old", task, task)
    client.lpush("unacked:w@h:old", task)
    (found,) = broker.unnamed(connection, ["celery"])
    assert found.what.startswith("3 tasks are in the queue 'old', which no pool, route or setting names: ")
    assert (found.severity, found.runbook) == (findings.WARNING, "QueueTooOld")


def test_a_pause_of_writes_is_found_in_every_version(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosttools, "TIMEOUT", 0.5)
    _, connection = open_redis(server)
    assert list(instances.paused("broker", connection)) == []
    command(server, "CLIENT", "PAUSE", "5000", "WRITE")
    (found,) = instances.paused("broker", connection)
    assert "CLIENT PAUSE" in found.what


def test_an_address_of_etc_hosts_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosttools, "TIMEOUT", 0.5)
    monkeypatch.setattr(files, "read", lambda _: "127.0.0.9 redis1 # by hand\n")
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, "127.0.0.9 STREAM redis1"))
    (found,) = connections.reach("redis://api:x@redis1:1/0", "api", "redis1", [1])
    assert "redis1:1 (127.0.0.9, says /etc/hosts) cannot be reached" in found.what


def test_a_silent_name_server_costs_no_more_than_our_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "read", lambda _: "nameserver 192.0.2.1\n")
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(process.TIMED_OUT, "", "it did not end within 3 s"))
    (found,) = connections.reach("redis://api:x@redis1:1/0", "api", "redis1", [1])
    assert "the name redis1 is unknown here: 192.0.2.1 of /etc/resolv.conf did not answer" in found.what


def test_a_missing_authority_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        url = f"rediss://api:x@127.0.0.1:{port}/0?ssl_ca_certs=/no/ca.crt"
        (found,) = connections.reach(url, "api", "127.0.0.1", [port])
    assert "/no/ca.crt is missing or holds no certificate" in found.what


def test_a_drop_in_our_own_table_is_told(tmp_path: Path) -> None:
    # nft prints some rules otherwise than they were written.
    rules = tmp_path / "rules.nft"
    rules.write_text("""table inet platform {
        set clients { type ipv4_addr; size 65535; flags dynamic; }
        chain input {
            type filter hook input priority filter; policy drop;
            ip saddr 127.0.0.0/8 counter drop
            ct state vmap { established : accept, related : accept, invalid : drop }
            ip saddr { 0.0.0.0/0 } add @clients { ip saddr ct count over 4 } reject with tcp reset comment "too many"
            counter drop
        }
    }""")
    look = tmp_path / "look.py"
    look.write_text(f"""if True:
        from hosttools.doctor import network
        network.RULES = {str(rules)!r}
        print([found.what for found in network.check([6380])])
    """)
    steps = f"""nft --file {rules} && {sys.executable} {look}
        nft add rule inet platform input ip saddr 10.0.0.1 drop && {sys.executable} {look}"""
    command = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", steps]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment)
    healthy, foreign = said.stdout.splitlines()
    assert healthy == "[]"
    assert "not ours drops packets: ip saddr 10.0.0.1 drop" in foreign


@pytest.mark.parametrize(("packets", "told"), [(0, []), (3, ["the firewall has refused 3 packets of tasks"])])
def test_denied_connections_of_tasks_are_reported(
    monkeypatch: pytest.MonkeyPatch, packets: int, told: list[str]
) -> None:
    listing = f"table inet platform {{\n\tcounter egress_refused {{\n\t\tpackets {packets} bytes 180\n\t}}\n}}"
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, listing))
    assert [finding.what.partition(":")[0] for finding in network.egress()] == told


def test_settings_that_hide_a_secret_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "read", lambda _: "LOG_LEVEL='info'\nCELERY_BROKER_URL='redis://elsewhere'\n")
    found = [finding.what for finding in release.check("no-such-app", [])]
    assert found[0] == (
        "/etc/no-such-app/backend.env sets CELERY_BROKER_URL, which goes before the secret file of that name"
    )


def test_a_closed_directory_on_the_way_is_named(tmp_path: Path) -> None:
    inside = tmp_path / "etc" / "app"
    inside.mkdir(parents=True)
    (inside / "backend.env").write_text("")
    (inside / "backend.env").chmod(0o644)
    inside.chmod(0o700)
    told = [found.what for found in release.closed([inside / "backend.env"])]
    assert f"{inside} cannot be read by the services (mode 0700)" in told


def made_release(place: Path) -> Path:
    """Make a release with two packages; return where they are."""
    packages = place / "venv/lib/python3.11/site-packages"
    for name in ("some_one", "other"):
        (packages / f"{name}-1.0.dist-info").mkdir(parents=True)
        (packages / f"{name}-1.0.dist-info/RECORD").write_text(f"{name}.py,sha256=x,4\n{name}.pyc,,\n")
        (packages / f"{name}.py").write_text("pass")
    (place / "requirements.txt").write_text("some-one[extra]==1.0 \\\n  --hash=x\nother==1.0\nwin==1 ; windows \\\n")
    return packages


def test_packages_that_are_not_whole_are_named(tmp_path: Path) -> None:
    packages = made_release(tmp_path)
    assert list(release.packages(tmp_path)) == []
    (packages / "other.py").write_text("changed")
    (packages / "some_one.py").unlink()
    told = {found.what for found in release.packages(tmp_path)}
    assert told == {
        f"{packages}/other.py, of the package other, was changed by hand",
        f"{packages}/some_one.py is missing, of the package some-one",
    }
    (packages / "some_one-1.0.dist-info").rename(packages / "some_one-0.9.dist-info")
    told = {found.what for found in release.packages(tmp_path)}
    assert f"the package some-one in {packages} is 0.9, the lock names 1.0" in told
    (packages / "other-1.0.dist-info/RECORD").unlink()
    (packages / "other-1.0.dist-info").rmdir()
    assert f"the package other is missing in {packages}" in {found.what for found in release.packages(tmp_path)}


def test_a_package_file_of_the_same_size_is_compared_when_it_is_newer(tmp_path: Path) -> None:
    packages = made_release(tmp_path)
    (packages / "other-1.0.dist-info/RECORD").write_text(f"other.py,{release.sha256(packages / 'other.py')},4\n")
    (packages / "other.py").write_text("fail")
    assert list(release.packages(tmp_path)) == []
    os.utime(packages / "other.py", (9e9, 9e9))
    assert [found.what for found in release.packages(tmp_path)] == [
        f"{packages}/other.py, of the package other, was changed by hand"
    ]
    (packages / "other.py").write_text("pass")
    os.utime(packages / "other.py", (9e9, 9e9))
    assert list(release.packages(tmp_path)) == []


def test_what_is_wrong_with_the_platforms_tools_comes_with_its_repair(tmp_path: Path) -> None:
    live, version = tmp_path / "platform", tmp_path / "platform-releases/1"
    repair = f": rm -r {version} {live}; then site.yml installs the platform's tools again"
    packages = made_release(version)
    assert [found.what for found in release.tools(live)] == [
        f"the platform's tools are not installed, {live} is missing: site.yml installs them"
    ]
    live.symlink_to(version)
    (missing,) = release.tools(live)
    assert (
        missing.what
        == f"the platform's tools are incomplete: {live}/venv/bin/python is missing or leads nowhere{repair}"
    )
    (version / "venv/bin").mkdir()
    (version / "venv/bin/python").touch(0o755)
    assert list(release.tools(live)) == []
    (packages / "other.py").unlink()
    (broken,) = release.tools(live)
    assert broken.what == f"{live}/{packages.relative_to(version)}/other.py is missing, of the package other{repair}"
    assert (broken.runbook, broken.severity) == ("drift", findings.CRITICAL)


def test_silences_and_alerts_that_we_do_not_see_ourselves_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    alerts = [
        {"labels": {"alertname": "TasksFail"}, "annotations": {"summary": "Half of the runs fail."}},
        {"labels": {"alertname": "ApiDown"}, "annotations": {"summary": "x"}},
    ]
    silence = {
        "status": {"state": "active"},
        "matchers": [{"name": "alertname", "value": ".+"}],
        "endsAt": "2026-01-02T03:04:05Z",
        "comment": "shh",
    }
    pages = {
        "p/api/v1/targets?state=active": {"data": {"activeTargets": []}},
        "p/api/v1/alertmanagers": {"data": {"activeAlertmanagers": []}},
        "p/api/v1/rules?type=alert": {"data": {"groups": []}},
        "a/api/v2/alerts?active=true": alerts,
        "a/api/v2/silences": [silence],
    }
    monkeypatch.setattr(web, "ask", lambda url, _: (200, json.dumps(pages[url])))
    assert [(found.what, found.runbook) for found in monitoring.check("p", "a")] == [
        ("Prometheus has no Alertmanager to tell of alerts", "Watchdog"),
        ("Prometheus has no rule for any alert: nothing can fire", "Watchdog"),
        ("Half of the runs fail. (docs/runbooks/TasksFail.md)", ""),
        ("alerts that fire: ApiDown", ""),
        ("nobody is told of alerts with alertname=.+ until 2026-01-02T03:04 UTC: shh", "planned-maintenance"),
    ]


@pytest.fixture
def node(server: RedisServer, tmp_path: Path) -> Iterator[Program]:
    started = start_worker(tmp_path / "worker.log", server.environment(0, 1), name="default")
    yield started
    started.stop()


@pytest.mark.integration
@pytest.mark.usefixtures("node")
def test_what_workers_were_told_while_they_run_is_found(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.url(0).replace("//:", "//default:")
    task, name = "app.agents.tasks.example_task.example_agent_task", f"default@{socket.gethostname()}"
    monkeypatch.setattr(files, "read", lambda file: url if "operator" in str(file) else "")
    monkeypatch.setattr(workers, "commands", lambda *_: [(name, ["celery"])])
    assert list(workers.check("app")) == []
    for control in (["cancel_consumer", "celery"], ["rate_limit", task, "1/h"]):
        told_by = [sys.executable, "-m", "celery", "-A", "app.agents.worker", "control", *control]
        subprocess.run(told_by, env={**os.environ, **server.environment(0, 1)}, cwd=REPOSITORY, check=False)
    told = [found.what for found in workers.check("app")]
    assert f"the worker {name} takes from no queue instead of celery (celery control): restart it" in told
    assert f"the worker {name} runs {task} at most 1/h (celery control): restart it" in told
    assert server.client(0).keys("doctor*") == []


def test_the_sample_sets_no_limits_of_its_own() -> None:
    """Else the doctor would not look for limits that workers were told."""
    sources = "".join(file.read_text() for file in (REPOSITORY / "app").rglob("*.py"))
    assert not re.search(r"\brate_limit *=", sources)


def test_the_queues_of_workers_here_are_read_from_units_and_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = "ExecStart=celery worker --hostname=default@%H \\\n --queues=celery,reports"
    programs = "[program:a]\ncommand=celery --hostname=one@%(host_node_name)s --queues=celery\n[program:b]\ncommand=x\n"
    monkeypatch.setattr(Path, "glob", lambda place, _: [place / "x"])
    monkeypatch.setattr(files, "read", lambda file: unit if "systemd" in str(file) else programs)
    assert dict(workers.commands("app", "h")) == {"default@h": ["celery", "reports"], "one@h": ["celery"]}


def test_the_line_that_names_a_taken_port_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    log = (
        "app.socket: Failed to create listening socket (127.0.0.1:8000): Address already in use\n"
        "app.socket: Failed to listen on sockets: Address already in use\n"
        "app.socket: Failed with result 'resources'.\n"
        "Failed to listen on app.socket - the API's socket.\n"
    )
    users = 'LISTEN 0 5 127.0.0.1:8000 0.0.0.0:* users:(("nc",pid=7,fd=3))'
    answers = {"journalctl": log, "ss": users, "systemctl": "ListenStream=127.0.0.1:8000"}
    monkeypatch.setattr(process, "run", lambda *command, **_: Result(0, answers[command[0]]))
    reason = reasons.because("app.socket")
    assert "Failed to create listening socket (127.0.0.1:8000)" in reason
    assert reason.endswith("(port 8000 is held by nc, process 7)")


def test_a_unit_that_has_its_port_is_no_intruder(monkeypatch: pytest.MonkeyPatch) -> None:
    users = 'LISTEN 0 5 127.0.0.1:8000 0.0.0.0:* users:(("python3",pid=7,fd=3))'
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, users))
    groups = {"/proc/7/cgroup": "0::/system.slice/typesafe-api.service\n"}
    monkeypatch.setattr(files, "read", lambda file: groups[file])
    assert reasons.listener(8000, "typesafe-api") == ""
    assert reasons.listener(8000, "typesafe-api.socket") == ""
    told = " (port 8000 is held by python3, process 7 of typesafe-api.service)"
    assert reasons.listener(8000, "typesafe-flower") == told


@pytest.mark.parametrize(("listens", "told"), [("127.0.0.1:8000 (Stream)", ""), ("/run/x (Stream)", "held by systemd")])
def test_systemd_listens_for_a_units_socket(listens: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"ss": 'users:(("systemd",pid=1,fd=80))', "systemctl": f"Listen={listens}"}
    monkeypatch.setattr(process, "run", lambda *command, **_: Result(0, answers[command[0]]))
    assert told in reasons.listener(8000, "typesafe-api")
    assert bool(reasons.listener(8000, "typesafe-api")) == bool(told)


CHAINS = {
    "errno and path": (
        lambda: Path("/no/such/file").read_text(),
        "[Errno 2] No such file or directory: '/no/such/file'",
    ),
    "a library": (lambda: json.loads("{"), "json.decoder.JSONDecodeError: Expecting property name enclosed in double"),
    "lines": (lambda: (_ for _ in ()).throw(ValueError("one\n  two\nthree")), "ValueError: one two three"),
}


def raised(run: Callable[[], object]) -> BaseException:
    """Return an exception that led to another one."""

    def wrapped() -> None:
        try:
            run()
        except Exception as error:
            raise RuntimeError("the worker cannot start") from error

    with pytest.raises(RuntimeError) as caught:
        wrapped()
    return caught.value


@pytest.mark.parametrize("form", ["json", "plain", "in the message"])
@pytest.mark.parametrize(("run", "words"), CHAINS.values(), ids=CHAINS)
def test_a_chain_of_exceptions_is_quoted_whole(
    run: Callable[[], object], words: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = raised(run)
    printed = "".join(traceback.format_exception(error)).rstrip()
    record = logging.LogRecord(
        "x", logging.ERROR, "x.py", 1, "Unrecoverable", None, (type(error), error, error.__traceback__)
    )
    in_message = {"level": "ERROR", "message": f"Unrecoverable\n{printed}"}
    log = {"json": JsonFormatter("api").format(record), "plain": printed, "in the message": json.dumps(in_message)}[
        form
    ]
    after = "x.service: Main process exited, code=exited, status=1/FAILURE\nx.service: Failed with result 'exit-code'."
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, f"it starts\n{log}\n{after}"))
    told = reasons.because("unit")
    assert words in told
    assert told.endswith('in wrapped: raise RuntimeError("the worker cannot start") from error]')
    assert "RuntimeError: the worker cannot start [" in told
    assert told.index(words) < told.index("RuntimeError")


def test_who_holds_the_connections_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        told = instances.holders(port)
        for connection in held:
            connection.close()
    assert told.startswith(": most are 5 from 127.0.0.1; 5 of ")
    assert f"process {os.getpid()} of " in told
    assert instances.holders(port) == ""


def test_a_quoted_path_of_this_host_is_no_secret(tmp_path: Path) -> None:
    release = tmp_path / "0123456789abcdef0123456789abcdef"
    release.mkdir()
    assert masking.quote(f"cannot read {release}/x") == f"cannot read {release}/x"
    assert masking.quote(f"cannot read {tmp_path}/1123456789abcdef0123456789abcdef").endswith("/**")


def test_the_api_says_why_it_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"http://x/health": (200, ""), "http://x/health/ready": (503, '{"detail": "The server is stopping."}')}
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, "active"))
    monkeypatch.setattr(web, "ask", lambda url, _: answers[url])
    told = [found.what for found in api.check("http://x", "/dev/null", 60, "app")]
    assert told[-1] == "the API does not reach the broker (503: The server is stopping.)"


def test_what_is_certain_goes_before_that_somebody_has_changed_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "read", lambda _: "CELERY_BROKER_URL='redis://elsewhere'\n")
    hides = vars(next(iter(release.check("no-such-app", []))))
    changed = finding(2, "backend.env was changed by hand", findings.FILES, suspect=True)
    assert told(examined("a", changed, hides))[0].endswith("which goes before the secret file of that name")


def test_the_way_of_packets_that_nobody_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> None:
        raise TimeoutError

    answers = {"getent": "192.0.2.1 STREAM redis1", "ip": "192.0.2.1 via 10.0.0.9 dev eth0 src 10.0.0.2 uid 0"}
    monkeypatch.setattr(process, "run", lambda *command, **_: Result(0, answers[command[0]]))
    monkeypatch.setattr(socket, "create_connection", silent)
    (found,) = connections.reach("redis://api:x@redis1:1/0", "api", "redis1", [1])
    assert found.what.endswith("nobody is there (they go via 10.0.0.9 dev eth0)")


@pytest.mark.parametrize(("left", "suspect"), [(8, False), (2, True)])
def test_memory_explains_what_fails_when_it_is_nearly_gone(
    left: int, suspect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = f"MemTotal: 100 kB\nMemAvailable: {left} kB\n"
    monkeypatch.setattr(files, "read", lambda file: meminfo if file == "/proc/meminfo" else "")
    monkeypatch.setattr(host, "disks", list)
    monkeypatch.setattr(host, "busy", list)
    (found,) = (found for found in host.check() if "of the memory is left" in found.what)
    assert found.suspect == suspect


@pytest.mark.parametrize(("free", "layer"), [(8, "LATER"), (1, "HOST")])
def test_a_disk_is_a_cause_when_nothing_is_left(free: int, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        total, free = 100, 0

    Usage.free = free
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    monkeypatch.setattr(host, "largest", lambda *_: "")
    found = next(found for found in host.disks() if f"{free}% left" in found.what)
    assert (found.severity, found.layer) == (findings.CRITICAL, getattr(findings, layer))


@pytest.mark.parametrize(("ticks", "words"), [(90, "busy with a slow command"), (0, "CLIENT PAUSE")])
def test_a_silent_redis_works_or_waits(ticks: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{"7": 0}, {"7": ticks}])
    monkeypatch.setattr(files, "read", lambda _: "7\n")
    monkeypatch.setattr(procfs, "ticks", lambda: next(looks))
    assert words in instances.silence("-broker")


@pytest.mark.parametrize(("place", "told"), [("old", ["runs release old"]), ("new", []), ("/", [])])
def test_a_process_of_another_release_is_told(
    place: str, told: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    live = tmp_path / "backend"
    live.symlink_to(tmp_path / "new")
    # systemd has just made the process when it is in /.
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path / place) as child:
        monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, f"MainPID={child.pid}"))
        found = list(release.outdated("unit", live, tmp_path / "none", ""))
        child.kill()
    assert [words for words in told if words in found[0].what] == told
    assert len(found) == len(told)


def test_the_consoles_own_release_is_not_the_applications(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for directory in ("backend", "console/1", "console/2"):
        (tmp_path / directory).mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path / "console/1") as child:
        monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, f"MainPID={child.pid}"))
        found = [
            list(
                release.outdated(
                    "unit", tmp_path / "backend", tmp_path / "none", f"WorkingDirectory={tmp_path}/{named}"
                )
            )
            for named in ("console/1", "console/2")
        ]
        child.kill()
    assert found[0] == []
    assert "runs release 1" in found[1][0].what
