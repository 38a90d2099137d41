"""The one program that goes through a pipe: where no file can be written, with the standard library alone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hosttools
from hosttools.__main__ import COMMANDS
from plugins.lookup import hosttools as lookup
from tests.support import REPOSITORY

SOURCES = sorted(Path(hosttools.__file__).parent.rglob("*.py"))
PYTHON = "/usr/bin/python3"  # the host's
LONGEST_MODULE = 250  # lines
LARGEST = 128 * 1024  # bytes: what one argument of a command may have, and far less than any pipe or module takes


def run(directory: Path, *arguments: str, program: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program, or another one, from standard input."""
    return subprocess.run(
        [PYTHON, "-I", "-", *arguments],
        input=program or lookup.program(),
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A directory where nothing is and nothing can be written."""
    tmp_path.chmod(0o555)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts_where_nothing_can_be_written(command: str, empty: Path) -> None:
    started = run(empty, command, "--help")
    assert started.returncode == 0, started.stderr
    assert started.stdout.startswith(f"usage: hosttools {command} ")
    assert list(empty.iterdir()) == []


def test_every_module_that_has_a_command_is_one() -> None:
    named = {file.parent.name if file.name == "__init__.py" else file.stem for file in SOURCES if _has_main(file)}
    assert named == {*COMMANDS, "__main__"}


def _has_main(file: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(file.read_text()).body)


def test_a_command_that_is_none_is_answered_with_those_there_are(empty: Path) -> None:
    rejected = run(empty, "doctors")
    assert rejected.returncode == 1
    assert rejected.stderr.startswith("hosttools has no command doctors: write one of aof, backup, ")
    assert "doctor " in run(empty).stdout


def test_a_command_imports_its_own_modules_alone(empty: Path) -> None:
    program = lookup.program().replace(
        "\nmain()\n", "\nmain()\nprint(*(name for name in sys.modules if 'hosttools' in name))\n"
    )
    seen = run(empty, "balancer", program=program).stdout.split()
    assert "hosttools.balancer" in seen
    assert not [name for name in seen if name.startswith(("hosttools.doctor", "hosttools.state", "hosttools.backup"))]


def test_what_it_reads_as_its_own_input_is_given_with_it(empty: Path) -> None:
    program = lookup.program("it's a\nkey").replace("\nmain()\n", "\nprint(repr(sys.stdin.read()))\n")
    assert run(empty, program=program).stdout == f"{'it' + chr(39) + 's a' + chr(10) + 'key'!r}\n"


def test_two_builds_are_the_same_and_small() -> None:
    first = lookup.program()
    lookup.packed.cache_clear()
    assert lookup.program() == first
    assert len(first) < LARGEST


def test_a_traceback_names_the_module_and_shows_its_line(empty: Path) -> None:
    failed = run(empty, "state", "/dev/null/nowhere", "--app=x", "--write", "--part=mounts")
    assert failed.returncode == 1
    assert 'File "hosttools/state/__init__.py", line ' in failed.stderr
    assert "\n    place.mkdir(mode=0o700, parents=True, exist_ok=True)\n" in failed.stderr


def test_a_source_can_be_read_as_the_program_says(tmp_path: Path) -> None:
    (tmp_path / "FILE").write_text(lookup.program())
    command = lookup.program().splitlines()[1].removeprefix("#").replace("python3", PYTHON, 1)
    shown = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown == (Path(hosttools.__file__).parent / "doctor/units.py").read_text() + "\n"


def test_the_lookup_returns_it_to_playbooks() -> None:
    command = ["ansible", "localhost", "--module-name=debug", "--args=msg={{ lookup('hosttools', stdin='x') }}"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "from hosttools.__main__ import main" in shown
    assert "sys.stdin = io.StringIO('x')" in shown


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: "/".join(file.parts[-2:]))
def test_a_module_is_short_and_needs_the_standard_library_alone(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= LONGEST_MODULE, "split it by what it looks at"
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            top = name.partition(".")[0]
            assert top == "hosttools" or top in sys.stdlib_module_names, f"{name} is not on a host"
