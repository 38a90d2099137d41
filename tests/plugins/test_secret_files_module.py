"""The module secret_files, run as Ansible runs it: rights, removal, check mode, and no value in its answer."""

import grp
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import REPOSITORY

MODULE = REPOSITORY / "roles/app_release/library/secret_files.py"
GROUP = grp.getgrgid(os.getegid()).gr_name
SECRET = secrets.token_hex(16)
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the module on a temporary directory; returns its answer."""

    def run(files: dict[str, dict[str, str]], check_mode: bool = False, group: str = GROUP) -> dict[str, Any]:
        arguments = {"directory": str(tmp_path), "groups": dict.fromkeys(files, group), "files": files}
        text = json.dumps({"ANSIBLE_MODULE_ARGS": arguments | {"_ansible_check_mode": check_mode}})
        result = subprocess.run([sys.executable, str(MODULE)], input=text, capture_output=True, text=True, check=False)
        assert SECRET not in result.stdout + result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    return run


def test_files_are_written_once_and_readable_by_their_group_alone(run: Run, tmp_path: Path) -> None:
    files = {"api": {"KEY": SECRET, "URL": "redis://ü"}, "worker": {"KEY": "other"}}
    assert run(files)["changed"]
    assert (tmp_path / "api/KEY").read_text() == SECRET
    assert (tmp_path / "api/URL").read_text(encoding="utf-8") == "redis://ü"
    assert (tmp_path / "api").stat().st_mode & 0o7777 == 0o750
    assert {path.stat().st_mode & 0o7777 for path in tmp_path.glob("*/*")} == {0o640}
    assert run(files) == {**run(files), "changed": False, "paths": []}


def test_what_is_not_wanted_is_removed(run: Run, tmp_path: Path) -> None:
    run({"api": {"KEY": SECRET, "OLD": "x"}, "gone": {"KEY": "x"}})
    (tmp_path / "api/directory/below").mkdir(parents=True)
    (tmp_path / "stray").write_text("x")
    (tmp_path / "api/link").symlink_to("/etc/hostname")
    answer = run({"api": {"KEY": SECRET}})
    removed = ("gone", "stray", "api/OLD", "api/directory", "api/link")
    assert {*answer["paths"]} == {str(tmp_path / name) for name in removed}
    assert {path.name for path in tmp_path.rglob("*")} == {"api", "KEY"}
    assert Path("/etc/hostname").exists()


def test_what_was_changed_by_hand_is_put_right(run: Run, tmp_path: Path) -> None:
    run({"api": {"KEY": SECRET, "LINK": SECRET}})
    (tmp_path / "api").chmod(0o755)
    (tmp_path / "api/KEY").chmod(0o644)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.write_text("x")
    (tmp_path / "api/LINK").unlink()
    (tmp_path / "api/LINK").symlink_to(elsewhere)
    assert len(run({"api": {"KEY": SECRET, "LINK": SECRET}})["paths"]) == 3
    assert (tmp_path / "api").stat().st_mode & 0o7777 == 0o750
    assert (tmp_path / "api/KEY").stat().st_mode & 0o7777 == 0o640
    assert not (tmp_path / "api/LINK").is_symlink()
    assert elsewhere.read_text() == "x"


def test_check_mode_tells_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    run({"api": {"KEY": SECRET}})
    answer = run({"worker": {"KEY": SECRET}}, check_mode=True)
    assert {*answer["paths"]} == {str(tmp_path / name) for name in ("api", "worker", "worker/KEY")}
    assert (tmp_path / "api/KEY").read_text() == SECRET
    assert not (tmp_path / "worker").exists()


def test_a_group_that_is_not_there_fails_but_not_in_check_mode(run: Run, tmp_path: Path) -> None:
    answer = run({"api": {"KEY": SECRET}}, group="no-such-group")
    assert answer["failed"]
    assert answer["msg"].startswith("The group no-such-group of ")
    assert run({"api": {"KEY": SECRET}}, group="no-such-group", check_mode=True)["changed"]
    assert list(tmp_path.iterdir()) == []
