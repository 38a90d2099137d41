"""The module host_files, run as Ansible runs it: what is created and corrected, and what is left alone."""

import grp
import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import REPOSITORY

MODULE = REPOSITORY / "plugins/modules/host_files.py"
OURS = {"owner": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the module on entries whose paths lie below a temporary directory; returns its answer."""

    def run(
        *files: dict[str, Any],
        directories: tuple[dict[str, Any], ...] = (),
        check: bool = False,
        umask: int = 0o022,
    ) -> dict[str, Any]:
        def place(entry: dict[str, Any]) -> dict[str, Any]:
            return OURS | entry | {"path": str(tmp_path / entry["path"])}

        arguments = {"files": [place(file) for file in files], "directories": [place(entry) for entry in directories]}
        text = json.dumps({"ANSIBLE_MODULE_ARGS": arguments | {"_ansible_check_mode": check}})
        command = [sys.executable, str(MODULE)]
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False, umask=umask)
        assert "Traceback" not in result.stdout + result.stderr, result.stdout + result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        answer["names"] = [os.path.relpath(path, tmp_path) for path in answer.get("changed_paths", [])]
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


# What people have reported of Ansible's own modules copy, file and template (numbers of ansible/ansible).


def test_a_directory_in_the_place_of_a_file_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    """9350, 10300: the file came into the directory, or the directory got the file's mode."""
    (tmp_path / "d/x").mkdir(parents=True, mode=0o711)
    for check in (True, False):
        answer = run({"path": "first", "content": "text"}, {"path": "d/x", "content": "text"}, check=check)
        assert answer["msg"] == f"{tmp_path / 'd/x'} is a directory, but must be a file: move it away."
    assert rights(tmp_path / "d/x") == 0o711
    assert not (tmp_path / "first").exists()


@pytest.mark.parametrize("wrong", [{"mode": "bogus"}, {"owner": "no-such-user"}, {"group": "no-such-group"}])
def test_rights_that_cannot_be_given_leave_everything_as_it_is(run: Run, tmp_path: Path, wrong: dict[str, str]) -> None:
    """33785: a part was written, and the next run did not report it; its services would not restart."""
    answer = run({"path": "x", "content": "text"}, {"path": "y", "content": "text", **wrong})
    assert answer["failed"]
    assert next(iter(wrong.values())) in answer["msg"] + answer.get("details", "")
    assert list(tmp_path.iterdir()) == []


def test_a_validator_sees_the_rights_that_the_file_gets(run: Run) -> None:
    """11385: visudo looks at them, too."""
    mode = {"mode": "0440", "validate": """sh -c 'test "$(stat -c %a %s)" = 440'"""}
    assert run({"path": "x", "content": "text", **mode}).get("msg") is None


def test_a_validator_must_get_the_file(run: Run) -> None:
    answer = run({"path": "x", "content": "text", "validate": "true"})
    assert answer["msg"].endswith("validate is 'true', but must hold %s, the file.")


def test_created_parents_are_readable_whatever_the_umask(run: Run, tmp_path: Path) -> None:
    run({"path": "a/b/x", "content": "text"}, directories=({"path": "a/b"},), umask=0o077)
    assert [rights(tmp_path / name) for name in ("a", "a/b", "a/b/x")] == [0o755, 0o755, 0o644]


def test_a_directory_may_be_a_link_to_another_disk(run: Run, tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "data").symlink_to(elsewhere)
    assert run(directories=({"path": "data", "mode": "0750"},))["changed"]
    assert rights(elsewhere) == 0o750
    assert not run(directories=({"path": "data", "mode": "0750"},))["changed"]


def test_check_mode_accepts_a_user_whom_the_run_would_create(run: Run, tmp_path: Path) -> None:
    """67307: it failed where the directory was there already."""
    (tmp_path / "data").mkdir()
    (tmp_path / "x").write_text("text")
    absent = {"owner": "not-yet-created", "group": "not-yet-created"}
    answer = run({"path": "x", "content": "text", **absent}, directories=({"path": "data", **absent},), check=True)
    assert answer["names"] == ["data", "x"]


def test_a_place_that_cannot_be_written_is_named(run: Run) -> None:
    """18628: a traceback."""
    answer = run({"path": "/proc/sys/x", "content": "text"})
    assert answer["msg"].startswith("/proc/sys/x cannot be written: ")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(
        st.sampled_from(["missing", "right", "other", "not text", "mode", "link", "dead link"]), max_size=6
    ),
    content=st.text(st.characters(exclude_categories=["Cs"])),
    modes=st.tuples(st.sampled_from(["0600", "0644", "0755", 0o640]), st.sampled_from([0o022, 0o077, 0])),
)
def test_whatever_was_there_check_mode_tells_one_run_corrects_and_the_next_does_nothing(
    run: Run, tmp_path: Path, before: list[str], content: str, modes: tuple[str | int, int]
) -> None:
    place = Path(tempfile.mkdtemp(dir=tmp_path))
    mode, umask = modes
    octal = mode if isinstance(mode, int) else int(mode, 8)
    entries: list[dict[str, Any]] = []
    for number, state in enumerate(before):
        path = place / str(number)
        if state.endswith("link"):
            path.symlink_to("/etc/hostname" if state == "link" else "nowhere")
        elif state != "missing":
            path.write_bytes(
                {"other": b"other" + content.encode(), "not text": b"\xff\xfe"}.get(state, content.encode())
            )
            path.chmod(0o666 if state == "mode" else octal)
        entries.append({"path": str(path), "content": content, "mode": mode})
    wrong = [entry["path"] for entry, state in zip(entries, before, strict=True) if state != "right"]
    assert run(*entries, check=True, umask=umask)["changed_paths"] == wrong
    assert run(*entries, umask=umask)["changed_paths"] == wrong
    assert run(*entries, umask=umask)["changed_paths"] == []
    assert [(Path(entry["path"]).read_bytes(), rights(Path(entry["path"]))) for entry in entries] == [
        (content.encode(), octal)
    ] * len(entries)
    assert {path.name for path in place.iterdir()} == {str(number) for number in range(len(before))}
