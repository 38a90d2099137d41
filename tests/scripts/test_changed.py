"""Which tests a change runs."""

import subprocess
from fnmatch import fnmatchcase

import pytest

from scripts.changed import INTEGRATION, ROWS, SCENARIOS, affected
from tests.support import REPOSITORY

EVERYTHING = sorted([INTEGRATION, *SCENARIOS])


def test_rows_name_what_exists_and_match_files() -> None:
    files = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for pattern, targets in ROWS:
        assert set(targets) <= set(EVERYTHING), pattern
        assert any(fnmatchcase(file, pattern) for file in files), pattern


@pytest.mark.parametrize("role", sorted(path.name for path in (REPOSITORY / "roles").iterdir()))
def test_each_role_runs_its_own_scenario(role: str) -> None:
    wanted = affected([f"roles/{role}/tasks/main.yml"])
    assert wanted
    if role in SCENARIOS:
        assert role in wanted


@pytest.mark.parametrize(
    "file", ["roles/stack/defaults/main.yml", "site.yml", "a-new-folder/file", "molecule/conftest.py"]
)
def test_what_is_in_no_row_runs_everything(file: str) -> None:
    assert affected([file]) == EVERYTHING
    assert affected(["docs/index.md", file]) == EVERYTHING


def test_changes_add_up() -> None:
    assert affected([]) == []
    assert affected(["docs/x.md", "README.md"]) == []
    assert affected(["molecule/redis/converge.yml", "roles/monitoring/x"]) == ["monitoring", "redis"]
