"""What hosts and controllers bring along: umask, proxies, a package manager that is busy."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_durable.testing import RedisServer
from hosttools import preflight, web
from tests.support import INLINE, REPOSITORY

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


@pytest.mark.parametrize(("where", "arguments"), uses("ansible.builtin.apt"))
def test_apt_waits_for_its_lock_for_minutes(where: str, arguments: dict[str, Any]) -> None:
    """On a new machine unattended-upgrades has it for as long as its updates take."""
    assert arguments.get("lock_timeout", 0) >= 600, where


def test_programs_on_hosts_use_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ok(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ok) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, "http://127.0.0.1:9")  # where nothing listens
        monkeypatch.delenv("no_proxy", raising=False)
        assert importlib.reload(web).ask(f"http://127.0.0.1:{server.server_port}/") == (200, "")
        server.shutdown()


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


def release(directory: Path) -> Path:
    """Make the archive of a release that needs no wheels."""
    archive = directory / "release.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in {"app/__init__.py": b"x = 1\n", "requirements.txt": b"", "wheels/none": b""}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o644
            tar.addfile(member, io.BytesIO(content))
    return archive


@pytest.mark.integration
def test_a_release_is_readable_whatever_the_umask_is(tmp_path: Path) -> None:
    root = tmp_path / "opt"
    (root / "releases").mkdir(parents=True)
    # What a run has left that ended in the middle.
    (left := root / "releases/one/venv/lib").mkdir(parents=True)
    (left / "module.py").write_text("")
    (left / "module.py").chmod(0o600)
    left.chmod(0o700)
    (tmp_path / "backend.env").write_text("")
    playbook = tmp_path / "unpack.yml"
    variables = {
        "__app_release_directory": str(root / "releases/one"),
        "app_release_packed": {"id": "one", "archive": str(release(tmp_path))},
        "app_release_name": "app",
        "__app_release_settings_file": str(tmp_path / "backend.env"),
        "app_release_dotenv": True,
        "app_release_shared": {},
        "app_release_prepare": [],
        # Nothing is imported: there is no command for that, nor an application.
        "app_release_celery": "",
        "app_release_web": "",
        "app_release_services": {"operator": {"user": "root"}},
    }
    unpack = {"ansible.builtin.include_tasks": str(REPOSITORY / "roles/app_release/tasks/unpack.yml")}
    facts = {"ansible.builtin.setup": {"gather_subset": ["!all", "!min", "python"]}}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": variables}
    playbook.write_text(yaml.safe_dump([{**play, "tasks": [facts, unpack]}]))
    # The files belong to root, who need not be the real one.
    prefix = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    result = subprocess.run(
        [*prefix, "ansible-playbook", "--inventory=localhost,", playbook],
        cwd=REPOSITORY,
        env={**os.environ, **INLINE},
        umask=0o077,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    hidden = [
        path
        for path in (root / "releases/one").rglob("*")
        if not path.is_symlink()
        and (path.stat().st_mode & 0o044 != 0o044 or (path.is_dir() and path.stat().st_mode & 0o011 != 0o011))
    ]
    assert hidden == []
    assert (root / "releases/one/.complete").exists()


def data_directory(directory: Path, **ages: int) -> Path:
    """Make files of a data directory, which were written so many seconds ago."""
    directory.mkdir()
    for name, age in ages.items():
        (file := directory / {"aof": "appendonly.aof", "rdb": "dump.rdb"}[name]).write_text("")
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    return directory


@pytest.mark.parametrize(
    ("ages", "is_refused"),
    [
        ({}, False),
        ({"rdb": 5}, False),
        ({"aof": 5}, False),
        ({"aof": 5, "rdb": 500}, False),
        ({"aof": 500, "rdb": 5}, True),
    ],
)
def test_data_of_an_older_redis_is_refused_where_only_a_person_knows_which_is_whole(
    ages: dict[str, int], is_refused: bool, tmp_path: Path
) -> None:
    assert bool(preflight.old_data(data_directory(tmp_path / "redis", **ages))) == is_refused
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


def test_a_checkout_that_everybody_may_write_is_refused_in_one_sentence(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")
    tmp_path.chmod(0o777)
    result = subprocess.run([tmp_path / "scripts/setup.sh"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"chmod o-w {tmp_path}" in result.stderr.splitlines()[-1]


def test_a_locale_that_the_machine_has_not_ends_nothing() -> None:
    lost = {**os.environ, "LC_ALL": "xx_XX.UTF-8", "LANG": "xx_XX.UTF-8"}
    command = ["bash", "-c", "source scripts/common.sh; ansible --version"]
    assert subprocess.run(command, cwd=REPOSITORY, env=lost, capture_output=True, check=False).returncode == 0
    assert "export LC_ALL := C.UTF-8" in (REPOSITORY / "Makefile").read_text().splitlines()
