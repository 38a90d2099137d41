"""A variable of an application acts in containers, or the page about them says that it belongs to hosts."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import REPOSITORY

ROLES = ("stack", "app_release", "celery_worker", "celery_beat", "api", "console", "flower", "redis")
PAGE = REPOSITORY / "docs/start/containers.md"
# What each target is made from; a role's preflight is not among it: to validate a value is not to use it.
ROOTS = {
    "compose": (
        *("playbooks/containers/compose.yml", "playbooks/tasks/container_*.yml", "roles/compose/templates/*"),
        *("roles/compose/tasks/*.yml", "roles/app_release/tasks/pack.yml", "roles/api/tasks/health.yml"),
        *("roles/redis/templates/redis.conf.j2",),
    ),
    "kubernetes": (
        *(
            "playbooks/containers/kubernetes.yml",
            "playbooks/containers/image.yml",
            "playbooks/tasks/container_application.yml",
        ),
        *("roles/kubernetes/templates/*", "roles/kubernetes/tasks/*.yml", "roles/app_release/tasks/pack.yml"),
        *("roles/redis/templates/redis.conf.j2",),
    ),
}
VARIABLES = {"compose": "containers", "kubernetes": "kubernetes"}


def public() -> set[str]:
    """Return the variables that an inventory may set; those that the stack derives are rejected."""
    defaults = {name for file in files(f"roles/{role}/defaults/main.yml" for role in ROLES) for name in read(file)}
    return defaults - {name for file in files(["roles/stack/vars/main/*.yml"]) for name in read(file)}


def read(file: Path) -> dict[str, Any]:
    """Return the variables of a file."""
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


def names(text: str) -> set[str]:
    """Return all words that a variable could have as its name."""
    return set(re.findall(r"\b[a-z_][a-z0-9_]+\b", text))


def files(patterns: Iterable[str]) -> list[Path]:
    """Return the files of some patterns."""
    return [path for pattern in patterns for path in sorted(REPOSITORY.glob(pattern)) if path.is_file()]


def used(target: str) -> set[str]:
    """Return the variables that reach what a target gets."""
    roles = (*ROLES, target)
    sources = [f"roles/{role}/{folder}/**/*.yml" for role in roles for folder in ("defaults", "vars")]
    definitions: dict[str, set[str]] = {}
    for file in files([*sources, f"playbooks/vars/{VARIABLES[target]}.yml"]):
        for name, value in read(file).items():
            definitions.setdefault(name, set()).update(names(yaml.safe_dump(value)))
    found: set[str] = set()
    new = {name for file in files(ROOTS[target]) if file.name != "preflight.yml" for name in names(file.read_text())}
    while new:
        found |= new
        new = {word for name in new for word in definitions.get(name, ())} - found
    return found


def of_hosts(target: str) -> list[str]:
    """Return the names and patterns that the page lists for a target."""
    table = PAGE.read_text().partition("## Variables without effect")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if "`" in line and line.startswith("|")]
    return [name for where, cell in rows if target.title() in where for name in re.findall(r"`([a-z_*]+)`", cell)]


@pytest.mark.parametrize("target", ROOTS)
def test_every_variable_acts_or_is_listed(target: str) -> None:
    listed = of_hosts(target)
    silent = {name for name in public() - used(target) if not any(fnmatch.fnmatch(name, pattern) for pattern in listed)}
    assert silent == set()


@pytest.mark.parametrize("target", ROOTS)
def test_what_is_listed_is_there_and_does_not_act(target: str) -> None:
    acting = used(target)
    for pattern in of_hosts(target):
        matching = set(fnmatch.filter(public(), pattern))
        assert matching, f"{pattern} is no variable"
        assert not acting & matching, f"{pattern} acts in {target}: {acting & matching}"
