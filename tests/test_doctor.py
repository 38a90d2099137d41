"""What the doctor finds on a host, and what it makes of it: causes before what follows from them."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import REPOSITORY, load_plugin

doctor = load_plugin("roles/stack/filter_plugins/stack_doctor.py")
script = load_plugin("playbooks/files/doctor.py")
manifest = load_plugin("playbooks/files/manifest.py")
LAYERS = ("HOST", "NETWORK", "REDIS", "REACH", "RIGHTS", "FILES", "UNITS", "WORKERS", "QUEUES", "LATER")


def host(name: str, *findings: dict[str, Any]) -> dict[str, Any]:
    """Return a host's variables after it was examined."""
    return {"inventory_hostname": name, "doctor_examined": {"stdout": json.dumps(findings)}}


def finding(severity: int, what: str, layer: int, runbook: str = "", **more: bool) -> dict[str, Any]:
    """Return what the doctor's script tells."""
    return {"severity": severity, "what": what, "runbook": runbook, "layer": layer, **more}


def told(*hosts: dict[str, Any]) -> list[str]:
    """Return what is found, in its order."""
    return [found["what"] for found in doctor.doctor_findings(list(hosts))]


def test_nothing_is_nothing() -> None:
    assert doctor.doctor_findings([host("a"), host("b")]) == []


def test_the_cause_comes_first() -> None:
    hosts = [
        host("api", finding(1, "no worker", script.WORKERS, "NoWorkers"), finding(1, "no broker", script.REACH)),
        host(
            "redis",
            finding(2, "an update waits", script.LATER),
            finding(1, "redis-server@broker is failed", script.REDIS, "RedisDown"),
            finding(1, "full", script.HOST, "DiskFilling"),
        ),
    ]
    assert doctor.doctor_sentences(doctor.doctor_findings(hosts)) == [
        "CRITICAL redis: full -> docs/runbooks/DiskFilling.md",
        "CRITICAL redis: redis-server@broker is failed -> docs/runbooks/RedisDown.md",
        "CRITICAL api: no broker",
        "CRITICAL api: no worker -> docs/runbooks/NoWorkers.md",
        "warning redis: an update waits",
    ]


def test_a_suspect_goes_before_what_it_explains() -> None:
    suspect = finding(2, "unit file was changed", script.FILES, suspect=True)
    assert told(host("a", suspect, finding(1, "worker fails", script.WORKERS)))[0] == "unit file was changed"


def test_a_suspect_goes_behind_what_needs_no_explanation() -> None:
    suspect = finding(2, "unit file was changed", script.FILES, suspect=True)
    stopped = finding(1, "worker was stopped", script.WORKERS, certain=True)
    assert told(host("a", suspect, stopped)) == ["worker was stopped", "unit file was changed"]
    deeper = finding(1, "Redis does not answer", script.REACH)
    assert told(host("a", suspect, deeper)) == ["Redis does not answer", "unit file was changed"]


def test_a_suspect_alone_is_a_warning() -> None:
    (found,) = doctor.doctor_findings([host("a", finding(2, "changed", script.FILES, suspect=True))])
    assert found["severity"] == 2


def test_notes_are_told_beside_something_critical_only() -> None:
    note, critical = finding(3, "booted", script.LATER), finding(1, "down", script.UNITS)
    assert told(host("a", note)) == []
    assert told(host("a", note, critical)) == ["down", "booted"]


def test_hosts_that_differ_are_told() -> None:
    def says(value: str) -> dict[str, Any]:
        return {"severity": 0, "what": "", "runbook": "", "facts": {"the application's code": value}}

    found = doctor.doctor_findings([host("a", says("1")), host("b", says("1")), host("c", says("2"))])
    assert [(one["host"], one["severity"]) for one in found] == [("c", 2)]
    assert "not the same as on a" in found[0]["what"]


def test_a_silent_host_goes_before_all() -> None:
    silent = {"inventory_hostname": "b", "doctor_examined": {"unreachable": True, "msg": "No route to host"}}
    sentences = doctor.doctor_sentences(doctor.doctor_findings([host("a", finding(1, "full", script.HOST)), silent]))
    assert sentences[0] == "CRITICAL b: Ansible does not reach it: No route to host -> docs/runbooks/TargetDown.md"


def test_a_host_without_python_is_told() -> None:
    broken = {"inventory_hostname": "b", "doctor_examined": {"failed": True, "stdout": "", "stderr": "no python3"}}
    assert told(broken) == ["Ansible cannot look into it: no python3"]


def test_every_page_that_is_named_exists() -> None:
    pages = {page.stem for page in (REPOSITORY / "docs/runbooks").glob("*.md")}
    source = (REPOSITORY / "playbooks/files/doctor.py").read_text()
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
            {"LoadState": "loaded", "ActiveState": "failed", "Result": "oom-kill", "ExecMainCode": "2"},
            "is failed (oom-kill",
        ),
    ],
)
def test_a_units_state_is_judged(properties: dict[str, str], words: str) -> None:
    found = list(script.state("no-such-unit", "NoWorkers", properties))
    assert words in found[0].what
    assert found[0].severity == script.CRITICAL


def test_a_halted_process_is_named() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert list(script.halted("unit", "NoWorkers", script.WORKERS, [str(process.pid)])) == []
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            (found,) = script.halted("unit", "NoWorkers", script.WORKERS, [str(process.pid)])
            assert f"kill -CONT {process.pid}" in found.what
            assert found.certain
        finally:
            process.kill()


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
    monkeypatch.setattr(script, "PATIENCE", 0.5)
    with redis_that_says(*answers) as port:
        (found,) = script.reach(f"redis://api:hidden-password@127.0.0.1:{port}/0", "api", "127.0.0.1", [port])
    assert words in found.what
    assert found.layer == getattr(script, layer)
    assert "hidden-password" not in found.what


def test_a_redis_that_answers_is_no_finding() -> None:
    with redis_that_says(b"+OK\r\n", b"+PONG\r\n", b"+PONG\r\n", b"+PONG\r\n") as port:
        assert script.reach(f"redis://api:x@127.0.0.1:{port}/0", "api", "127.0.0.1", [port]) == []


def test_a_name_that_nobody_knows_is_told() -> None:
    (found,) = script.reach("redis://api:x@no-such-host.invalid:1/0", "api", "no-such-host.invalid", [1])
    assert "the name no-such-host.invalid is unknown here" in found.what
    assert found.layer == script.NETWORK


def test_a_secret_that_leads_elsewhere_is_told_without_its_password() -> None:
    (found,) = script.reach("redis://api:hidden-password@elsewhere:1/0", "api", "redis1", [6380])
    assert "names api@elsewhere:1, the inventory api@redis1" in found.what
    assert "hidden-password" not in found.what


def test_quoted_logs_hold_no_secret() -> None:
    line = "cannot use redis://api:short@host:1 nor 0123456789abcdef0123456789abcdef"
    assert script.quote(line) == "cannot use redis://api:**@host:1 nor **"


def test_a_check_that_fails_does_not_hide_the_others() -> None:
    def check() -> Iterator[Any]:
        yield script.Finding(script.CRITICAL, "seen", "")
        raise KeyError("x")

    seen, failed = script.careful(check)
    assert seen.what == "seen"
    assert "could not look: KeyError" in failed.what


def test_the_manifest_tells_each_kind_of_change(tmp_path: Path) -> None:
    etc, place = tmp_path / "etc", tmp_path / "manifest"
    etc.mkdir()
    for name in ("changed", "opened", "removed", "same"):
        (etc / name).write_text(name)
    (etc / "link").symlink_to("same")
    assert manifest.write(place, "app", [f"{etc}/**"])
    assert not manifest.write(place, "app", [f"{etc}/**"])
    assert list(manifest.compare(place)) == []

    (etc / "changed").write_text("by hand")
    (etc / "opened").chmod(0o666)
    (etc / "removed").unlink()
    (etc / "added").write_text("")
    (etc / "link").unlink()
    (etc / "link").symlink_to("changed")
    said = {one["what"].split()[0].rpartition("/")[2]: one["what"] for one in manifest.compare(place)}
    assert said.keys() == {"changed", "opened", "removed", "added", "link"}
    assert "was changed by hand" in said["changed"]
    assert "0666 instead of" in said["opened"]
    assert "was removed by hand" in said["removed"]
    assert "was added by hand" in said["added"]
    assert "leads to changed instead of same" in said["link"]


def test_without_a_manifest_nothing_is_compared(tmp_path: Path) -> None:
    assert list(manifest.compare(tmp_path / "none")) == []


def test_a_comparison_that_fails_is_told() -> None:
    broken = {**host("a"), "doctor_compared": {"rc": 1, "stdout": "", "stderr": "JSONDecodeError: Expecting value"}}
    (sentence,) = doctor.doctor_sentences(doctor.doctor_findings([broken]))
    assert sentence.startswith("warning a: its files cannot be compared with what was installed: JSONDecodeError")
