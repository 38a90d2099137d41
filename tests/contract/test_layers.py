"""What may import what: no package knows an application, and layers have no circle (records 0036 and 0038)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import REPOSITORY

SOURCE = REPOSITORY / "packages/celery-durable/src"
LIBRARY = "celery_durable"
# The ways in: what reaches into `worker`.
TOP = {"__init__", "__main__", "check", "installer", "loader"}
MODULES = sorted(SOURCE.rglob("*.py"))
CONSOLE_SOURCE = REPOSITORY / "packages/durable-console/src"
CONSOLE = "durable_console"
CONSOLE_MODULES = sorted(CONSOLE_SOURCE.rglob("*.py"))
# What the library may need besides Python: Celery, redis-py, and what these bring.
ALLOWED = {"celery", "kombu", "billiard", "click", "redis", LIBRARY, *sys.stdlib_module_names}
# What a part of the console may need besides.
SERVERS = {
    "flower": {"flower", "tornado"},
    "web": {"fastapi", "jinja2", "markupsafe", "prometheus_client", "pydantic", "starlette", "uvicorn"},
}


def imported(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            yield node.module or ""
            if node.module == LIBRARY or (node.module or "").startswith(f"{LIBRARY}."):
                yield from (f"{node.module}.{name.name}" for name in node.names)


def layer(name: str) -> str:
    """Return the layer of a module of the library."""
    part = name.removeprefix(LIBRARY).lstrip(".").split(".")[0]
    return part if part in {"worker", "aio", "web"} else "top" if part in TOP else "flat"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(SOURCE)))
def test_the_library_depends_on_celery_and_redis_alone(module: Path) -> None:
    assert {name.partition(".")[0] for name in imported(module)} <= ALLOWED


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(SOURCE)))
def test_nothing_imports_upwards(module: Path) -> None:
    own = layer(".".join(module.relative_to(SOURCE).with_suffix("").parts))
    inside = {name for name in imported(module) if name.startswith(f"{LIBRARY}.")}
    below = {"flat": {"flat"}, "worker": {"flat", "worker"}, "aio": {"flat", "aio"}}
    below |= {"web": {"flat", "web"}, "top": {"flat", "worker", "top"}}
    assert {layer(name) for name in inside} <= below[own]


def test_flat_modules_have_no_circle() -> None:
    below: dict[str, set[str]] = {}
    for module in MODULES:
        name = ".".join(module.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        if name != LIBRARY:
            below[name] = {other for other in imported(module) if other.startswith(f"{LIBRARY}.")}
    known = set(below)
    while below:
        floor = {name for name, others in below.items() if not (others & known) - {name} & below.keys()}
        assert floor, f"a circle among {sorted(below)}"
        below = {name: others for name, others in below.items() if name not in floor}


def test_the_package_alone_imports_nothing() -> None:
    third = {"celery", "kombu", "billiard", "click", "redis"}
    code = f"import sys; import {LIBRARY}; print(*{third} & {{*sys.modules}})"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == []


@pytest.mark.parametrize("module", CONSOLE_MODULES, ids=lambda module: str(module.relative_to(CONSOLE_SOURCE)))
def test_the_console_depends_on_the_library_and_its_servers_alone(module: Path) -> None:
    part = module.relative_to(CONSOLE_SOURCE / CONSOLE).parts[0]
    assert {name.partition(".")[0] for name in imported(module)} <= {*ALLOWED, CONSOLE, *SERVERS.get(part, set())}


def test_the_sample_imports_nothing_of_the_console_but_its_routers() -> None:
    for module in (REPOSITORY / "app").rglob("*.py"):
        of_the_console = {name for name in imported(module) if name.partition(".")[0] == CONSOLE}
        assert all(f"{name}.".startswith(f"{CONSOLE}.web.") or name == CONSOLE for name in of_the_console), module


def test_an_operators_commands_start_without_flower_and_without_an_application() -> None:
    code = (
        "import sys; import durable_console.__main__; print(*{'app', 'fastapi', 'flower', 'tornado'} & {*sys.modules})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == []


def test_no_library_knows_the_sample() -> None:
    packages = REPOSITORY / "packages"
    for file in [*packages.glob("*/*"), *packages.glob("*/src/**/*")]:
        if file.is_file() and file.suffix in {".py", ".md", ".toml", ".lua"}:
            text = file.read_text()
            assert not [word for word in ("app.agents", "app.main:app", "typesafe") if word in text], file
