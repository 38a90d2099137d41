"""The contract of all roles: every public variable is in defaults and argument_specs alike, and documented once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
# The stack role holds the variables that reach several roles; they bear the names of what they set.
SHARED_NAMES = {"stack"}
each_role = pytest.mark.parametrize("role", ROLES)


def load(role: str, file: str) -> Any:
    return yaml.safe_load((ROOT / "roles" / role / file).read_text())


def options(role: str) -> dict[str, dict[str, Any]]:
    specs = load(role, "meta/argument_specs.yml")["argument_specs"]
    return dict((specs.get("main") or specs["preflight"])["options"])


@each_role
def test_defaults_and_argument_specs_name_the_same_variables(role: str) -> None:
    required = {name for name, option in options(role).items() if option.get("required")}
    assert set(load(role, "defaults/main.yml")) | required == set(options(role))


@each_role
def test_argument_specs_that_repeat_a_default_repeat_it_right(role: str) -> None:
    defaults = load(role, "defaults/main.yml")
    for name, option in options(role).items():
        if "default" in option:
            assert option["default"] == defaults[name], name


@each_role
def test_variables_bear_the_roles_name(role: str) -> None:
    if role in SHARED_NAMES:
        return
    assert [name for name in options(role) if not name.startswith(f"{role}_")] == []


@each_role
def test_the_preflight_checks_the_same_options_as_the_role(role: str) -> None:
    first, *others = [entry["options"] for entry in load(role, "meta/argument_specs.yml")["argument_specs"].values()]
    assert all(each == first for each in others)


@each_role
def test_every_default_has_a_comment(role: str) -> None:
    lines = (ROOT / "roles" / role / "defaults/main.yml").read_text().splitlines()
    commented = False
    for line in lines:
        if line.startswith("#"):
            commented = True
        elif not line.strip():
            commented = False
        elif not line.startswith((" ", "---")):
            assert commented, f"{line}: say what it is"


def test_the_page_of_variables_is_current() -> None:
    subprocess.run([sys.executable, ROOT / "scripts/variables_page.py", "--check"], check=True)
