"""What differs from the last healthy state, of kinds that nobody has to foresee, and what the record may hold."""

from __future__ import annotations

import argparse
import fcntl
import glob
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_durable.testing import RedisServer
from hosttools import files, findings, process, state
from hosttools.process import Result
from hosttools.redis_client import Redis
from hosttools.state import compare, contents, services, system

GIVEN = argparse.Namespace(unit=["typesafe-api=ApiDown"], redis=[], monitoring="")


def told(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs, as sentences."""
    return [found.what for found in compare.compare(before, now, "typesafe")]


def says(**answers: str) -> Callable[..., Result]:
    """Stand for the commands of a host: what each says, by a word of it."""

    def run(*command: str, **_: object) -> Result:
        return Result(0, next((said for word, said in answers.items() if word.replace("_", "-") in command), ""))

    return run


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose files are recorded."""
    place = tmp_path / "etc"
    (place / "data").mkdir(parents=True)
    for name in ("changed", "opened", "removed", "same", "data/aof"):
        (place / name).write_text(name)
    (place / "link").symlink_to("same")
    monkeypatch.setattr(contents, "CONTENT", {findings.FILES: f"{place}/*"})
    monkeypatch.setattr(contents, "RIGHTS_OF", f"{place}/ {place}/data")
    monkeypatch.setattr(contents, "RIGHTS_IN", f"{place}/data/")
    return place


def test_each_kind_of_change_of_a_file_is_told(etc: Path) -> None:
    before = {"files": contents.all_files("typesafe", GIVEN)}
    assert told(before, {"files": contents.all_files("typesafe", GIVEN)}) == []
    (etc / "changed").write_text("by hand")
    (etc / "opened").chmod(0o666)
    (etc / "removed").unlink()
    (etc / "added").write_text("")
    (etc / "link").unlink()
    (etc / "link").symlink_to("changed")
    (etc / "same").unlink()
    (etc / "same").mkdir()
    (etc / "data").chmod(0o700)
    (etc / "data/aof").chmod(0o000)
    said = {
        what.split()[0].removeprefix(f"{etc}/"): what
        for what in told(before, {"files": contents.all_files("typesafe", GIVEN)})
    }
    assert said.keys() == {"changed", "opened", "removed", "added", "link", "same", "data", "data/*"}
    assert "was changed by hand" in said["changed"]
    assert "0666 instead of" in said["opened"]
    assert "was removed by hand" in said["removed"]
    assert "was added by hand" in said["added"]
    assert "leads to changed instead of same" in said["link"]
    assert "0700 instead of" in said["data"]
    assert "0000 instead of" in said["data/*"]


def test_the_first_files_of_a_directory_are_no_difference_if_its_user_made_them(etc: Path) -> None:
    (etc / "data/aof").unlink()
    before = {"files": contents.all_files("typesafe", GIVEN)}
    (etc / "data/dump.rdb").write_text("x")
    assert told(before, {"files": contents.all_files("typesafe", GIVEN)}) == []
    (etc / "data/dump.rdb").chmod(0o000)
    assert "0000 instead of nothing" in told(before, {"files": contents.all_files("typesafe", GIVEN)})[0]


def test_files_that_come_and_go_are_no_difference(etc: Path) -> None:
    before = {"files": contents.all_files("typesafe", GIVEN)}
    (etc / "data/aof.2").write_text("x")
    (etc / "data/aof").unlink()
    (etc / "typesafe-celery~debug-mode.conf").symlink_to("/run/x")
    assert told(before, {"files": contents.all_files("typesafe", GIVEN)}) == []


def test_what_else_closes_a_file_is_told(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getxattr", lambda *_, **__: _raise(OSError()))
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: bytes(8))
    before = {"attributes": contents.attributes("typesafe", GIVEN)}
    monkeypatch.setattr(os, "getxattr", lambda name, *_, **__: b"x" if name.endswith("opened") else _raise(OSError()))
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: b"\x10" + bytes(7))
    said = told(before, {"attributes": contents.attributes("typesafe", GIVEN)})
    assert f"the access list of {etc}/opened is new" in said
    assert f"the attribute immutable of {etc}/data is new" in said


def _raise(error: OSError) -> Any:
    raise error


def test_files_of_debians_packages_that_are_gone_or_written_later_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib/json").mkdir(parents=True)
    names = ("lib/json", "lib/json/decoder.py", "lib/hmac.py", "lib/hmac.pyc", "lib/same.py", "share/doc")
    for name in names[1:-1]:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "python3:amd64.list").write_text("".join(f"{tmp_path}/{name}\n" for name in names))
    monkeypatch.setattr(contents, "INFO", tmp_path)
    monkeypatch.setattr(contents, "PROGRAMS", re.compile(rf"{tmp_path}/lib"))
    before = {"debian files": contents.debian_files("", GIVEN)}
    assert before == {"debian files": {}}
    shutil.rmtree(tmp_path / "lib/json")
    os.utime(tmp_path / "lib/hmac.py", (9e9, 9e9))
    assert told(before, {"debian files": contents.debian_files("", GIVEN)}) == [
        f"{tmp_path}/lib/hmac.py is changed by hand: apt-get install --reinstall python3",
        f"{tmp_path}/lib/json is gone: apt-get install --reinstall python3",
    ]


def test_what_redis_and_all_units_run_with_explains_what_redis_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    slice_ = "/system.slice/system-redis\\x2dserver.slice: cgroup.freeze"
    before: dict[str, Any] = {"processes": {slice_: "0"}, "units": {}, "manager": {}}
    now: dict[str, Any] = {
        "processes": {slice_: "1"},
        "units": {"redis-server@broker MemoryMax": "9"},
        "manager": {"systemd's DefaultLimitNOFILE": "9"},
    }
    assert {found.layer for found in compare.compare(before, now, "typesafe")} == {findings.REDIS}
    monkeypatch.setattr(process, "run", says(list_unit_files="cleanup.timer transient -\nrun-u7.service transient -"))
    assert told({"units": {}}, {"units": system.units("typesafe", GIVEN)})[0].startswith("cleanup.timer as a unit file")


def test_devices_are_compared() -> None:
    assert contents._kind("/dev/null") == "device 1:3"
    assert compare.change("/dev/null", "root:root 0666 device 1:3", "root:root 0644 file") != ""
    closed = compare.change("/dev/x", "root:root 1777 directory", "root:root 0755 directory")
    assert closed == "/dev/x is root:root 0755 instead of root:root 1777"


def test_what_lies_below_a_link_that_leads_elsewhere_follows_from_it() -> None:
    text = "root:root 0644 file 0"
    before = {"release": {"/nowhere/live": "leads to a", "/nowhere/live/app": text, "/nowhere/live-b": text}}
    assert len(told(before, {"release": {"/nowhere/live": "leads to b", "/nowhere/live-b": text}})) == 1
    assert len(told(before, {"release": {}})) == 2


def test_files_whose_user_is_gone_are_no_cause() -> None:
    assert compare.change("/", "gone:root 0755 directory", "990:root 0755 directory") == ""
    assert "0700 instead" in compare.change("/", "gone:root 0755 directory", "990:root 0700 directory")
    assert compare.change("/*", "gone:gone readable and writable", "990:990 readable and writable") == ""
    assert "990:root 0755 instead" in compare.change("/", "root:root 0755 directory", "990:root 0755 directory")


def test_what_a_record_of_another_version_has_kept_is_no_difference() -> None:
    before = {"units": {"a LoadState": "loaded", "a RestartUSecNext": "1s", "a User": "b"}}
    assert told(before, {"units": {"a LoadState": "loaded", "a User": "b"}}) == []


def test_what_a_stopped_unit_takes_with_it_is_no_cause() -> None:
    assert compare.change("/run/redis-broker", "redis:redis 2755 directory", None) == ""
    assert "0700 instead" in compare.change(
        "/run/redis-broker", "redis:redis 2755 directory", "redis:redis 0700 directory"
    )


@pytest.mark.integration
def test_one_and_the_same_user_of_the_file_is_no_difference(asked: tuple[RedisServer, Redis]) -> None:
    server, ask = asked

    def now() -> dict[str, Any]:
        return {"redis": services._instance("main", "user worker on +multi\n", ask)}

    ask.call("ACL", "SETUSER", "worker", "on", "+multi")
    before = now()
    ask.call("ACL", "SETUSER", "worker", "+@transaction", "-discard")
    assert told(before, now()) == []
    ask.call("ACL", "SETUSER", "outsider", "on", ">password-of-theirs")
    ask.call("CONFIG", "SET", "hz", "50")
    assert "password-of-theirs" not in json.dumps(now())
    assert server.password not in json.dumps(now())
    assert told(before, now()) == ["Redis main: hz is 50 instead of 10", "Redis main: the user outsider is new"]


@pytest.mark.parametrize(("place", "whose"), [("backend", "release's"), ("platform", "platform's")])
def test_other_versions_in_a_venv_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, whose: str
) -> None:
    packages = tmp_path / f"opt/typesafe/{place}/venv/lib/python3.11/site-packages"
    monkeypatch.setattr(contents, "Path", lambda path: tmp_path / path.lstrip("/"))
    for name in ("kombu-5.7.0", "redis-8.1.0", "gone-1"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    before = {"packages": contents.packages("typesafe", GIVEN)}
    (packages / "kombu-5.7.0.dist-info").rename(packages / "kombu-5.3.0.dist-info")
    (packages / "gone-1.dist-info").rmdir()
    assert told(before, {"packages": contents.packages("typesafe", GIVEN)}) == [
        f"in the {whose} venv the package gone is none instead of 1",
        f"in the {whose} venv the package kombu is 5.3.0 instead of 5.7.0",
    ]


def test_what_somebody_gives_to_all_units_is_told_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", says(show_environment="LANG=C"))
    before = {"manager": system.manager("typesafe", GIVEN)}
    monkeypatch.setattr(process, "run", says(show_environment="LANG=C\nCELERY_BROKER_URL=redis://:hidden@elsewhere"))
    now = {"manager": system.manager("typesafe", GIVEN)}
    assert "hidden" not in json.dumps(now)
    assert told(before, now) == ["systemd's environment variable CELERY_BROKER_URL is new"]


UNIT = "LimitNOFILE=65536\nExecStart={ path=/x ; argv[]=/x ; start_time=[n/a] ; pid=0 }\nDropInPaths=\nNRestarts=0"
UNIT += "\nMainPID=7\nRequires=a.target b.slice"


@pytest.mark.parametrize(
    ("line", "by", "what"),
    [
        ("LimitNOFILE=65536", "LimitNOFILE=64", "typesafe-api LimitNOFILE is 64 instead of 65536"),
        ("DropInPaths=", "DropInPaths=/run/x.conf", "typesafe-api DropInPaths is /run/x.conf instead of empty"),
        ("argv[]=/x", "argv[]=/y", "argv[]=/y"),
        ("MainPID=7", "Environment=A=hidden", "typesafe-api Environment is new (A="),
        ("start_time=[n/a]", "start_time=[Sun 2026]", ""),
        ("Requires=a.target b.slice", "Requires=b.slice a.target", ""),
        (UNIT, "LoadState=masked\nFragmentPath=/dev/null", "typesafe-api LoadState is masked instead of loaded"),
        (
            "Requires=a.target b.slice",
            "Requires=b.slice",
            "typesafe-api Requires is b.slice instead of a.target b.slice",
        ),
        ("NRestarts=0", "NRestarts=5\nActiveEnterTimestamp=now\nMemoryCurrent=5", ""),
    ],
)
def test_what_systemd_says_of_a_unit_is_compared(
    line: str, by: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "run", says(show=UNIT))
    before = {"units": system.units("typesafe", GIVEN)}
    monkeypatch.setattr(process, "run", says(show=UNIT.replace(line, by)))
    said = told(before, {"units": system.units("typesafe", GIVEN)})
    assert len(said) == bool(what)
    assert what in "".join(said)
    assert "hidden" not in "".join(said)


def test_a_link_that_is_down_is_told_and_its_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*flags: str) -> str:
        address = {"family": "inet", "local": "127.0.0.1", "prefixlen": 8}
        return json.dumps([{"ifname": "lo", "flags": flags, "mtu": 65536, "addr_info": [address]}])

    monkeypatch.setattr(process, "run", says(address=link("UP"), route="10.0.0.0/8 dev lo"))
    before = {"network": services.network("typesafe", GIVEN)}
    blocked = (
        "src 127.0.0.1/32 dst 127.0.0.1/32 proto tcp \n\tdir out action block priority 0 \nsrc 10.0.0.1/32 \n\tdir out"
    )
    monkeypatch.setattr(process, "run", says(address=link(), xfrm=blocked))
    assert told(before, {"network": services.network("typesafe", GIVEN)}) == [
        "the link lo is down, mtu 65536 instead of up, mtu 65536",
        "the policy src 127.0.0.1/32 dst 127.0.0.1/32 proto tcp dir out action block priority 0 is new",
        "the route 10.0.0.0/8 dev lo is gone",
    ]


def test_a_packet_filters_new_rule_is_told_and_its_counts_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = "table inet x {\nchain y {\ntcp dport 22 counter packets 1 bytes 2 accept\n}\n}"
    monkeypatch.setattr(process, "run", says(ruleset=rules))
    before = {"network": services.network("typesafe", GIVEN)}
    monkeypatch.setattr(
        process, "run", says(ruleset=rules.replace("packets 1", "packets 9").replace("}\n}", "udp dport 53 drop\n}\n}"))
    )
    assert told(before, {"network": services.network("typesafe", GIVEN)}) == [
        "the packet filter's rule udp dport 53 drop of the table inet x is new"
    ]


def test_a_name_that_nobody_knows_any_more_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glob, "glob", lambda _: ["a secret"])
    monkeypatch.setattr(files, "read", lambda _: "redis://worker:x@redis1:6380/0")
    monkeypatch.setattr(process, "run", says(redis1="10.0.0.1 STREAM", localhost="127.0.0.1 STREAM"))
    before = {"names": services.names("typesafe", GIVEN)}
    monkeypatch.setattr(process, "run", says(localhost="127.0.0.1 STREAM"))
    assert told(before, {"names": services.names("typesafe", GIVEN)}) == [
        "the name redis1 is unknown here instead of 10.0.0.1"
    ]


def test_the_limits_of_a_process_are_compared_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        monkeypatch.setattr(process, "run", says(show=f"MainPID={child.pid}\nControlGroup="))
        before = {"processes": system.processes("typesafe", GIVEN)}
        subprocess.run(["prlimit", f"--pid={child.pid}", "--nofile=8:8"], check=True)
        said = told(before, {"processes": system.processes("typesafe", GIVEN)})
        child.kill()
    assert [what.partition(" instead")[0] for what in said] == ["typesafe-api: Max open files is 8 8"]
    monkeypatch.setattr(process, "run", says(show="MainPID=0"))
    assert told(before, {"processes": system.processes("typesafe", GIVEN)}) == []


def test_one_part_that_fails_or_hangs_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> dict[str, str]:
        raise OSError(13, "Permission denied", "/x")

    def hangs(*_: object) -> dict[str, str]:
        time.sleep(60)
        return {}

    monkeypatch.setattr(state, "WITHIN", 0.5)
    parts = {"a": (fails, 2, 1), "b": (hangs, 2, 1), "c": (lambda *_: {"x": "1"}, 2, 1)}
    monkeypatch.setattr(compare, "PARTS", parts)
    now = state.look("typesafe", GIVEN, list(parts))
    assert now == {
        "a": "PermissionError: [Errno 13] Permission denied: '/x'",
        "b": "it takes longer than 0.5 s",
        "c": {"x": "1"},
    }
    monkeypatch.setattr(compare, "BOTH", ())
    assert told({"a": {"x": "1"}, "b": {}, "c": {"x": "2"}}, now) == ["x is 1 instead of 2"]


def test_the_record_of_one_part_keeps_the_others(tmp_path: Path) -> None:
    state.write(tmp_path, {"files": {"a": "1"}, "packages": {"b": "1"}})
    state.write(tmp_path, {"packages": {"b": "2"}, "files": "it takes longer than 6 s"})
    record = json.loads((tmp_path / "healthy.json").read_text())
    assert (record["files"], record["packages"]) == ({"a": "1"}, {"b": "2"})
    assert (tmp_path / "healthy.json").stat().st_mode & 0o777 == 0o600


def test_many_differences_are_counted() -> None:
    before = {"sysctls": {f"vm.{number:03}": "1" for number in range(40)}}
    said = told(before, {"sysctls": {}})
    assert len(said) == compare.NAMED + 1
    assert said[-1] == "30 more of the sysctls differ from the healthy state"


def test_without_a_record_nothing_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hosttools", "state", "--app=typesafe", str(tmp_path / "none"), "--hard-limit=60"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_this_machine_is_recorded_and_does_not_differ(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hosttools", "state", "--app=typesafe", str(tmp_path)]
    unseen = subprocess.run([*command, "--write"], capture_output=True, text=True, check=True).stdout
    assert json.loads(unseen) == {}
    assert (tmp_path / "healthy.json").stat().st_size < 2_000_000
    began = time.monotonic()
    assert "PATH" not in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - began < state.WITHIN + 4


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[tuple[RedisServer, Redis]]:
    server = RedisServer(tmp_path / "redis", durable=True, unixsocket=str(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as local:
        local.connect(str(tmp_path / "s"))
        ask = Redis(local)
        ask.call("AUTH", server.password)
        yield server, ask
    server.stop()


@pytest.mark.integration
def test_a_key_of_another_kind_is_told(asked: tuple[RedisServer, Redis]) -> None:
    server, ask = asked
    client = server.client(0)
    client.sadd("_kombu.binding.celery", "x")
    client.set("celery-task-meta-0e6a8b5c-1111-2222-3333-444455556666", "x")
    client.rpush("celery", "x")
    before = {"redis": {f"Redis broker: the key {key}": kind for key, kind in services._keys(ask).items()}}
    assert "Redis broker: the key celery-task-meta-*" in before["redis"]
    client.delete("celery", "celery-task-meta-0e6a8b5c-1111-2222-3333-444455556666")
    client.lpush("new", "x")
    client.delete("_kombu.binding.celery")
    client.set("_kombu.binding.celery", "a string")
    now: dict[str, Any] = {"redis": {f"Redis broker: the key {key}": kind for key, kind in services._keys(ask).items()}}
    (found,) = list(compare.compare(before, now, "typesafe"))
    assert (
        found.what == "Redis broker: the key _kombu.binding.celery is a string instead of a set: every use of it fails"
    )
    assert (found.layer, found.suspect, found.difference) == (findings.RIGHTS, True, True)


def test_what_does_not_answer_in_time_is_no_difference_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(process.TIMED_OUT, "", "systemctl did not end"))
    now = state.look("typesafe", GIVEN, ["units", "network", "manager"])
    assert now == dict.fromkeys(now, "TimeoutError: systemctl did not end")
    assert told({part: {"x": "y"} for part in now}, now) == []
    state.write(tmp_path, {"manager": {}})
    monkeypatch.setattr(state, "look", lambda *_: now)
    said = state.differences(tmp_path, argparse.Namespace(app="typesafe"))
    assert {found.severity for found in said} == {findings.NOTE}
    assert "the part manager cannot be compared with the healthy state: TimeoutError: systemctl did not" in said[0].what
