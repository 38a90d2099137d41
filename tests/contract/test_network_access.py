"""No request of the platform to itself uses a proxy, and apt waits for its lock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support import REPOSITORY

TASK_FILES = sorted(
    file
    for folder in ("roles", "playbooks")
    for file in (REPOSITORY / folder).rglob("*.yml")
    if {"tasks", "handlers"} & set(file.parts) or folder == "playbooks"
)


def tasks(entries: Any) -> Iterator[dict[str, Any]]:
    """Return every task below a list of plays, blocks and tasks."""
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            yield entry
            for part in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
                yield from tasks(entry.get(part))


def uses(module: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the arguments of each task that uses a module, with its file and name."""
    found = [
        (f"{file.relative_to(REPOSITORY)}: {task.get('name')}", task[module])
        for file in TASK_FILES
        for task in tasks(yaml.safe_load(file.read_text()))
        if module in task
    ]
    assert found
    return found


@pytest.mark.parametrize(("where", "arguments"), uses("ansible.builtin.uri"))
def test_no_request_of_the_platform_to_itself_uses_a_proxy(where: str, arguments: dict[str, Any]) -> None:
    assert arguments.get("use_proxy") is False, where


def test_nothing_asks_in_another_way() -> None:
    """Whoever adds a client of HTTP adds it to the tests above."""
    for file in [*REPOSITORY.glob("packages/hosttools/src/**/*.py"), *REPOSITORY.glob("roles/*/files/*")]:
        if file.is_dir():  # what Python keeps of those that a test has loaded
            continue
        assert "urlopen(" not in file.read_text(), file
        assert "urllib.request" not in file.read_text() or file.name == "web.py" or "roles" in file.parts, file
    for file in [*TASK_FILES, *REPOSITORY.glob("roles/*/templates/*")]:
        for line in file.read_text().splitlines():
            if "curl --" in line:
                assert "--noproxy" in line, f"{file}: {line}"


@pytest.mark.parametrize(("where", "arguments"), uses("ansible.builtin.apt"))
def test_apt_waits_for_its_lock_for_minutes(where: str, arguments: dict[str, Any]) -> None:
    """On a new machine unattended-upgrades has it for as long as its updates take."""
    assert arguments.get("lock_timeout", 0) >= 600, where
