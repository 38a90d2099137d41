"""The module host_files, run as Ansible runs it: what is created and corrected, and what is left alone."""

import grp
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import REPOSITORY

MODULE = REPOSITORY / "plugins/modules/host_files.py"
OURS = {"owner": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the module on entries whose paths lie below a temporary directory; returns its answer."""

    def run(
        *files: dict[str, Any], directories: tuple[dict[str, Any], ...] = (), check: bool = False
    ) -> dict[str, Any]:
        def place(entry: dict[str, Any]) -> dict[str, Any]:
            return OURS | entry | {"path": str(tmp_path / entry["path"])}

        arguments = {"files": [place(file) for file in files], "directories": [place(entry) for entry in directories]}
        text = json.dumps({"ANSIBLE_MODULE_ARGS": arguments | {"_ansible_check_mode": check}})
        result = subprocess.run([sys.executable, str(MODULE)], input=text, capture_output=True, text=True, check=False)
        answer: dict[str, Any] = json.loads(result.stdout)
        answer["names"] = [str(Path(path).relative_to(tmp_path)) for path in answer.get("changed_paths", [])]
        return answer

    return run


def rights(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_directories_come_first_and_a_second_run_changes_nothing(run: Run, tmp_path: Path) -> None:
    entries = [{"path": "a/b/x", "content": "ü\n"}, {"path": "a/y", "content": "", "mode": "0600"}]
    directories = ({"path": "a/b", "mode": "0750"},)
    assert run(*entries, directories=directories)["names"] == ["a/b", "a/b/x", "a/y"]
    assert (tmp_path / "a/b/x").read_text(encoding="utf-8") == "ü\n"
    assert [rights(tmp_path / name) for name in ("a/b", "a/b/x", "a/y")] == [0o750, 0o644, 0o600]
    again = run(*entries, directories=directories)
    assert (again["changed"], again["names"], again["diff"]) == (False, [], [])


@pytest.mark.parametrize("harm", ["content", "mode", "link", "removed", "directory mode"])
def test_what_was_changed_by_hand_is_corrected(run: Run, tmp_path: Path, harm: str) -> None:
    entry, directory = {"path": "d/x", "content": "right\n"}, {"path": "d"}
    run(entry, directories=(directory,))
    file, elsewhere = tmp_path / "d/x", tmp_path / "elsewhere"
    elsewhere.write_text("right\n")
    if harm == "content":
        file.write_text("wrong\n")
    elif harm == "mode":
        file.chmod(0o666)
    elif harm == "directory mode":
        file.parent.chmod(0o777)
    else:
        file.unlink()
        if harm == "link":
            file.symlink_to(elsewhere)
    assert run(entry, directories=(directory,))["names"] == (["d"] if harm == "directory mode" else ["d/x"])
    assert file.read_text() == "right\n"
    assert not file.is_symlink()
    assert (rights(file), rights(file.parent)) == (0o644, 0o755)
    assert elsewhere.read_text() == "right\n"


def test_no_file_is_written_when_one_is_not_valid(run: Run, tmp_path: Path) -> None:
    run({"path": "x", "content": "old"})
    answer = run({"path": "x", "content": "new"}, {"path": "y", "content": "bad", "validate": "grep -q good %s"})
    assert answer["failed"]
    assert answer["msg"].startswith(f"{tmp_path / 'y'} is left as it was, because its new content is not valid: ")
    assert (tmp_path / "x").read_text() == "old"
    assert not (tmp_path / "y").exists()
    assert run({"path": "y", "content": "good", "validate": "grep -q good %s"})["names"] == ["y"]


def test_check_mode_reports_on_a_bare_host_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    entry = {"path": "d/x", "content": "text\n", "validate": "false %s"}
    answer = run(entry, directories=({"path": "d"},), check=True)
    assert answer["names"] == ["d", "d/x"]
    assert answer["diff"][0]["after"] == "text\n"
    assert list(tmp_path.iterdir()) == []


def test_the_parent_directory_of_a_file_must_be_there(run: Run) -> None:
    answer = run({"path": "nowhere/x", "content": "text"})
    assert answer["failed"]
    assert answer["msg"].endswith("/nowhere in directories.")
