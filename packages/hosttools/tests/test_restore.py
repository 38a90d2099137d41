"""What differs from the recorded healthy state is restored where it is the platform's, and left where it is not."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from celery_durable.testing import RedisServer
from hosttools import files, findings, process, restore, state
from hosttools.process import Result
from hosttools.redis_client import Redis, local
from hosttools.restore import verbs
from hosttools.state import compare, contents, system


@pytest.fixture
def given(tmp_path: Path) -> argparse.Namespace:
    """What the arguments name: no unit and no Redis, and where the record is."""
    return argparse.Namespace(
        app="typesafe", unit=[], redis=[], queue=[], monitoring="", confirm=True, place=tmp_path / "record"
    )


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose files are recorded, and are ours."""
    place = tmp_path / "etc"
    (place / "data").mkdir(parents=True)
    (place / "link").symlink_to("same")
    for name in ("changed", "emptied", "opened", "removed", "same", "secret", "replaced"):
        (place / name).write_text(name)
    (place / "secret").chmod(0o600)
    monkeypatch.setattr(contents, "CONTENT", {findings.FILES: f"{place}/*"})
    monkeypatch.setattr(contents, "RIGHTS_OF", f"{place}/ {place}/data")
    monkeypatch.setattr(contents, "RIGHTS_IN", f"{place}/data/")
    monkeypatch.setattr(verbs, "OURS", str(place))
    return place


def record(given: argparse.Namespace) -> dict[str, Any]:
    """Record the present state of the files; return the record."""
    state.write(given.place, {"files": contents.all_files(given.app, given)})
    return state.recorded(given.place)


def repair(before: dict[str, Any], given: argparse.Namespace, *, mine: bool = True) -> verbs.Repair:
    """Do what the files need; return the plan."""
    planned = verbs.Repair(given, before["texts"])
    for name, was, now in compare.different("files", before, contents.all_files(given.app, given)):
        planned.file(name, was, now)
    for step in planned.steps.values() if mine else ():
        step()
    return planned


def break_all(etc: Path) -> None:
    """Change each file by its name."""
    for name in ("changed", "secret"):
        (etc / name).write_text("by hand")
    os.truncate(etc / "emptied", 0)
    (etc / "opened").chmod(0o666)
    (etc / "removed").unlink()
    (etc / "replaced").unlink()
    (etc / "replaced").symlink_to("/nowhere")
    (etc / "link").unlink()
    (etc / "link").symlink_to("changed")
    (etc / "same").unlink()
    (etc / "same").mkdir()
    (etc / "data").chmod(0o000)


def test_files_of_ours_are_as_they_were_recorded_and_what_was_there_is_kept(
    etc: Path, given: argparse.Namespace
) -> None:
    before = record(given)
    assert "secret" not in str(before["texts"].values())
    break_all(etc)
    planned = repair(before, given)
    left = {name for name, *_ in compare.different("files", before, contents.all_files(given.app, given))}
    assert left == {str(etc / "secret")}
    assert ["/secret was changed by hand" in told for told in planned.left] == [True]
    kept = {file.name: file for file in given.place.rglob("replaced/**/*") if not file.is_dir() or file.is_symlink()}
    assert kept["changed"].read_text() == "by hand"
    assert {"emptied", "link"} <= kept.keys()


def test_what_somebody_else_has_written_is_left(
    etc: Path, given: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = record(given)
    monkeypatch.setattr(verbs, "OURS", "/nowhere")
    break_all(etc)
    (etc / "added").write_text("by hand")
    planned = repair(before, given)
    assert (etc / "changed").read_text() == "by hand"
    assert any("/changed was changed by hand" in told for told in planned.left)
    assert (etc / "added").exists()
    assert Path(f"{given.place}/recorded{etc}/changed").read_text() == "changed"
    # Nobody needs what is gone, empty or closed.
    assert (etc / "removed").read_text() == "removed"
    assert (etc / "emptied").read_text() == "emptied"
    assert (etc / "opened").stat().st_mode & 0o777 == 0o644


def test_a_link_in_the_place_of_a_services_file_changes_nothing_elsewhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    victim.chmod(0o600)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/aof").symlink_to(victim)
    (tmp_path / "way").symlink_to(tmp_path / "data")
    files.own_all(tmp_path / "data", "root:root")
    with pytest.raises(OSError, match="leads to"):
        files.own(tmp_path / "way/aof", "root:root", "0666")
    assert victim.stat().st_mode & 0o777 == 0o600


def test_a_release_that_was_rolled_back_is_never_chosen(etc: Path, given: argparse.Namespace) -> None:
    for release in ("bad", "good"):
        (etc / release).mkdir()
    (etc / "backend").symlink_to("bad")
    before = record(given)
    (etc / "backend").unlink()
    (etc / "backend").symlink_to("good")
    (etc / "bad/.rolled-back").touch()
    planned = repair(before, given)
    assert (etc / "backend").readlink() == Path("good")
    assert planned.left == [f"{etc}/backend leads to good instead of bad: that release was rolled back"]
    (etc / "bad/.rolled-back").unlink()
    repair(before, given)
    assert (etc / "backend").readlink() == Path("bad")


def test_data_that_is_gone_is_never_made_anew(given: argparse.Namespace) -> None:
    planned = verbs.Repair(given, {})
    planned.file("/var/lib/redis/nowhere", "redis:redis 0750 directory", None)
    assert planned.steps == {}
    assert "was removed by hand" in planned.left[0]


@pytest.mark.parametrize(
    ("difference", "step"),
    [
        (("network", "the link lo", "up, mtu 65536", "down, mtu 65536"), "ip link set lo up mtu 65536"),
        (("network", "the address 127.0.0.1/8", "on lo", None), "ip address add 127.0.0.1/8 dev lo"),
        (
            ("network", "the packet filter's rule tcp dport 6380 drop of the table inet platform", None, "there"),
            "systemctl restart platform-firewall",
        ),
        (("network", "the packet filter's rule tcp dport 6380 drop of the table inet other", None, "there"), ""),
        (("network", "the rule 0: from all to 127.0.0.1 blackhole", None, "there"), ""),
        (
            ("manager", "systemd's environment variable PYTHONPATH", None, "0" * 16),
            "systemctl unset-environment PYTHONPATH",
        ),
        (("sysctls", "net.core.somaxconn", "4096", "1"), "sysctl --write net.core.somaxconn=4096"),
        (("mounts", "/etc/typesafe", None, "ext4 of x ro"), "umount /etc/typesafe"),
        (("mounts", "/home", None, "ext4 of x ro"), ""),
        (
            ("attributes", "the access list of /etc/redis", None, "0" * 16),
            "the access list of /etc/redis is new: removed",
        ),
        (
            ("attributes", "the attribute immutable of /opt", None, "there"),
            "the attribute immutable of /opt is new: removed",
        ),
        (
            ("units", "typesafe-api.service as a unit file", "enabled", "masked"),
            "systemctl unmask typesafe-api.service",
        ),
        (("units", "other.service as a unit file", "enabled", "masked"), ""),
        (("redis", "Redis main: the key figures", "hash", "string"), "Redis main: RENAME figures figures.replaced-"),
        (("redis", "Redis main: maxclients", "10000", "1"), "Redis main: CONFIG SET maxclients 10000"),
        (("redis", "Redis main: the user other", None, "0" * 16), ""),
    ],
)
def test_each_kind_of_difference_has_its_verb_or_is_left(
    difference: tuple[str, str, str | None, str | None],
    step: str,
    given: argparse.Namespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part, name, was, now = difference
    given.unit = ["typesafe-api=ApiDown"]
    monkeypatch.setattr(restore, "look", lambda *_: {part: {name: now} if now else {}})
    planned = restore.plan({part: {name: was} if was else {}}, given)
    assert [told.startswith(step) for told in planned.steps] == ([True] if step else [])
    assert len(planned.left) == (0 if step else 1)


def test_a_redis_whose_file_is_written_anew_starts_anew(
    given: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    given.redis = ["main=6379", "broker=6380"]
    name = "/etc/redis/redis-broker.conf"
    before = {"files": {name: "root:redis 0640 file a"}}
    monkeypatch.setattr(restore, "look", lambda *_: {"files": {name: "root:redis 0640 file b"}})
    monkeypatch.setattr(verbs.Repair, "servers", lambda _: None)
    planned = restore.plan(before, given)
    assert "redis" in planned.roles
    assert planned.units == {"redis-server@broker"}


def test_a_control_group_gets_back_what_it_had(
    given: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "system.slice").mkdir()
    frozen = tmp_path / "system.slice/cgroup.freeze"
    frozen.write_text("1")
    monkeypatch.setattr(system, "CGROUPS", tmp_path)
    name = "/system.slice: cgroup.freeze"
    monkeypatch.setattr(restore, "look", lambda *_: {"processes": {name: "1"}})
    planned = restore.plan({"processes": {name: "0"}}, given)
    assert list(planned.steps) == [f"{name} is 1 instead of 0: written"]
    planned.steps[f"{name} is 1 instead of 0: written"]()
    assert frozen.read_text() == "0"


def test_a_mount_ends_before_what_it_hides_is_looked_at(
    given: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds: list[dict[str, Any]] = [
        {"mounts": {"/etc/typesafe": "ext4 of x ro"}, "files": {}},
        {"mounts": {}, "files": {"/etc/typesafe/x": "root:root 0644 file 0"}},
    ]
    ran: list[str] = []

    def run(*command: str, **_: object) -> Result:
        ran.append(" ".join(command))
        return Result()

    monkeypatch.setattr(restore, "recorded", lambda _: {"mounts": {}, **rounds[1]})
    monkeypatch.setattr(restore, "look", lambda *_: rounds.pop(0))
    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr(os, "_exit", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["restore", str(given.place), "--app=typesafe", "--confirm"])
    restore.main()
    assert ran[0] == "umount /etc/typesafe"
    assert json.loads(capsys.readouterr().out)["done"] == ["umount /etc/typesafe"]


def test_a_drop_in_that_is_not_ours_is_put_aside(
    given: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours.conf").write_text("# Ansible managed\n")
    (tmp_path / "theirs.conf").write_text("[Service]\nMemoryMax=40M\n")
    paths = f"/usr/lib/systemd/x.conf {tmp_path}/ours.conf {tmp_path}/theirs.conf"
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, f"DropInPaths={paths}"))
    given.unit = ["typesafe-api=ApiDown"]
    planned = verbs.Repair(given, {})
    planned.drop_ins()
    for step in planned.steps.values():
        step()
    assert planned.units == {"typesafe-api"}
    assert [file.name for file in tmp_path.glob("*.conf")] == ["ours.conf"]
    assert [file.name for file in given.place.rglob("*.conf")] == ["theirs.conf"]


def test_a_unit_that_hangs_is_killed_and_started(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(*command: str, **_: object) -> Result:
        asked.append(" ".join(command))
        shown = "LoadState=loaded\nFreezerState=running\nControlGroup=\nActiveState=active"
        answers = {
            "show": Result(0, shown),
            "restart": Result(process.TIMED_OUT),
            "is-active": Result(3, "deactivating"),
        }
        return answers.get(command[1], Result())

    monkeypatch.setattr(process, "run", run)
    assert list(restore.restart(["a", "b"], {"a"})) == ["restarted: a", "killed first: a"]
    after = asked[asked.index("systemctl restart a") + 1 :]
    assert after[1:] == ["systemctl kill --signal=KILL a", "systemctl start a"]


def test_what_a_service_writes_at_its_end_is_restored_too(
    given: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarted: list[set[str]] = []
    steps: list[dict[str, Any]] = [{}, {"chmod": list}, {}]

    def plan(*_: object) -> verbs.Repair:
        return verbs.Repair(given, {}, steps=steps.pop(0), units={"redis-server"})

    def restart(_: list[str], only: set[str]) -> list[str]:
        restarted.append(only)
        return []

    monkeypatch.setattr(restore, "plan", plan)
    monkeypatch.setattr(restore, "restart", restart)
    monkeypatch.setattr(process, "run", lambda *_, **__: Result())
    monkeypatch.setattr(os, "_exit", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["restore", str(given.place), "--app=typesafe", "--confirm", "--start"])
    restore.main()
    assert restarted == [{"redis-server"}, {"redis-server"}]


@pytest.mark.integration
def test_an_append_only_file_that_was_switched_off_is_written_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = RedisServer(tmp_path / "redis", durable=True, unixsocket=str(tmp_path / "s"))

    def connect() -> Redis:
        redis = local(tmp_path / "s")
        redis.call("AUTH", server.password)
        return redis

    monkeypatch.setattr(verbs, "Instance", lambda _: types.SimpleNamespace(connect=connect))
    try:
        with connect() as ask:
            ask.call("CONFIG", "SET", "appendonly", "no")
            ask.call("SET", "a-new-key", "x" * 100_000)
            verbs.told("main", "CONFIG", "SET", "appendonly", "yes")
            assert ask.info("persistence")["aof_rewrite_in_progress"] == "0"
        assert any(b"a-new-key" in file.read_bytes() for file in (tmp_path / "redis").rglob("*.aof*"))
    finally:
        server.stop()
