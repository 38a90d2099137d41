"""What a host has already: data of an older Redis, and names that somebody else uses."""

import os
from pathlib import Path

import pytest

from celery_durable.testing import RedisServer
from hosttools import preflight


def data_directory(directory: Path, **ages: int) -> Path:
    """Make files of a data directory, which were written so many seconds ago."""
    directory.mkdir()
    for name, age in ages.items():
        (file := directory / {"aof": "appendonly.aof", "rdb": "dump.rdb"}[name]).write_text("")
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    return directory


@pytest.mark.parametrize(
    ("ages", "is_rejected"),
    [
        ({}, False),
        ({"rdb": 5}, False),
        ({"aof": 5}, False),
        ({"aof": 5, "rdb": 500}, False),
        ({"aof": 500, "rdb": 5}, True),
    ],
)
def test_data_of_an_older_redis_is_rejected_where_only_a_person_knows_which_is_whole(
    ages: dict[str, int], is_rejected: bool, tmp_path: Path
) -> None:
    assert bool(preflight.old_data(data_directory(tmp_path / "redis", **ages))) == is_rejected
    (tmp_path / "redis/appendonlydir").mkdir()
    assert preflight.old_data(tmp_path / "redis") == ""


@pytest.mark.integration
def test_redis_takes_over_what_an_older_one_has_written(tmp_path: Path) -> None:
    """The append-only file wins over an older snapshot (roles/redis/tasks/restart.yml leaves it there)."""
    server = RedisServer(tmp_path / "redis", save="1000 1")
    server.client(0).set("before", "1")
    server.client(0).save()
    server.stop()
    (tmp_path / "redis/appendonly.aof").write_text(
        "".join(
            f"${len(word)}\r\n{word}\r\n" if word[0] != "*" else f"{word}\r\n" for word in ("*3", "set", "after", "2")
        )
    )
    server.settings["appendonly"] = "yes"
    server.start()
    assert server.client(0).get("after") == "2"
    assert not (tmp_path / "redis/appendonly.aof").exists()
    assert list((tmp_path / "redis/appendonlydir").glob("*"))
    server.stop()


def test_names_that_somebody_else_has_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any("a user root" in clash for clash in preflight.clashes("root", "/opt/root"))
    assert any("a user daemon" in clash for clash in preflight.clashes("daemon", "/opt/daemon"))
    monkeypatch.setattr(preflight, "UNITS", (tmp_path,))
    for unit in ("mine-celery-slow.service", "mine-api.service"):
        (tmp_path / unit).write_text("")
    assert list(preflight.clashes("mine", "/opt/mine")) == []
    (tmp_path / "mine-backup.service").write_text("")
    (clash,) = preflight.clashes("mine", "/opt/mine")
    assert "mine-backup.service" in clash
