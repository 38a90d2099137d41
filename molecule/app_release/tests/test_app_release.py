"""What the app_release role promises: an atomic, checked release; settings and secrets that only the services read."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT
from testinfra.host import Host

BACKEND = "/opt/typesafe/backend"


def live_release(host: Host) -> str:
    return str(host.check_output(f"readlink {BACKEND}"))


def test_the_live_release_is_a_link_to_a_directory_of_its_own(host: Host) -> None:
    assert live_release(host).startswith("/opt/typesafe/releases/")


def test_the_release_has_all_that_it_was_locked_with(host: Host) -> None:
    assert host.run(f"{BACKEND}/venv/bin/pip check").succeeded
    celery = host.check_output(f"{BACKEND}/venv/bin/pip show celery")
    locked = (PROJECT / "requirements/app.txt").read_text()
    version = next(line for line in celery.splitlines() if line.startswith("Version:")).split()[1]
    assert f"celery=={version} " in locked


def test_the_release_lists_its_parts(host: Host) -> None:
    bom = json.loads(host.check_output(f"cat {BACKEND}/sbom.cdx.json"))
    assert bom["metadata"]["component"]["version"] == Path(live_release(host)).name
    installed = json.loads(host.check_output(f"{BACKEND}/venv/bin/pip list --format=json"))
    own = {"pip", "setuptools"}  # the virtual environment's

    def named(parts: list[dict[str, str]]) -> set[tuple[str, str]]:
        return {(part["name"].lower().replace("_", "-"), part["version"]) for part in parts if part["name"] not in own}

    assert named(installed) <= named(bom["components"])


def test_an_operator_can_use_the_guides_check_on_the_host(host: Host) -> None:
    command = "venv/bin/python -c \"from app.agents.worker import celery_app; print('OK')\""
    assert host.check_output(f"cd {BACKEND} && sudo -u typesafe {command}") == "OK"


def test_the_services_cannot_change_their_own_code(host: Host) -> None:
    assert host.check_output(f"find {BACKEND}/ -user typesafe -o -perm /o+w ! -type l | head") == ""


@pytest.mark.parametrize(
    ("service", "user"),
    [
        ("worker", "typesafe"),
        ("api", "typesafe-api"),
        ("flower", "typesafe-flower"),
        ("operator", "typesafe-operator"),
    ],
)
def test_secrets_are_for_their_service_alone(host: Host, service: str, user: str) -> None:
    path = f"/etc/typesafe/secrets/{service}/CELERY_BROKER_URL"
    file = host.file(path)
    assert (file.user, file.group, file.mode) == ("root", user, 0o640)
    readers = {"typesafe", "typesafe-api", "typesafe-flower", "typesafe-operator", "nobody"}
    allowed = {reader for reader in readers if host.run(f"sudo -u {reader} cat {path}").succeeded}
    assert allowed == {user}
    assert host.user("typesafe").groups == ["typesafe"]


@pytest.mark.parametrize("name", ["redis_worker_password", "redis_api_password", "backend_api_key", "task_signing_key"])
def test_no_file_that_all_can_read_holds_a_secret(host: Host, secret: Callable[[str], str], name: str) -> None:
    find = "find /etc /opt /var/log /usr/lib/systemd -type f -perm -o+r -print0"
    assert host.run(f"{find} | xargs -0 grep -lF {secret(name)}").stdout == ""


@pytest.fixture
def changed_source(tmp_path: Path) -> Path:
    """A copy of the application that differs from the deployed one."""
    shutil.copytree(PROJECT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT / "requirements", tmp_path / "requirements")
    (tmp_path / "app" / "CHANGE").write_text("a new release\n")
    return tmp_path


def test_a_broken_release_stays_dark_and_a_good_one_goes_live(
    host: Host, converge: Callable[..., subprocess.CompletedProcess[str]], changed_source: Path
) -> None:
    before = live_release(host)
    new = {"app_release_source": str(changed_source), "app_release_cache": str(PROJECT / ".cache/releases")}

    tried = converge("--check", "--diff", **new)
    assert tried.returncode == 0, tried.stdout
    assert live_release(host) == before

    worker = changed_source / "app/agents/worker.py"
    good = worker.read_text()
    worker.write_text(f"raise SystemExit('this release is broken')\n{good}")
    rejected = converge(**new)
    worker.write_text(good)
    assert rejected.returncode != 0
    assert "this release is broken" in rejected.stdout
    assert live_release(host) == before

    # Leftovers of the past: more than are to be kept, and a secret that nobody wants any more.
    host.run("mkdir -p /opt/typesafe/releases/old{1,2,3}; touch -d 2020-01-01 /opt/typesafe/releases/old*")
    stale = ["/etc/typesafe/secrets/worker/GROQ_API_KEY", "/etc/typesafe/secrets/CELERY_BROKER_URL"]
    host.run(f"touch {' '.join(stale)}")
    accepted = converge(**new, app_release_keep=2)
    assert accepted.returncode == 0, accepted.stdout
    assert live_release(host) != before
    assert host.file(f"{BACKEND}/app/CHANGE").exists
    releases = host.check_output("ls -d /opt/typesafe/releases/*").split()
    assert sorted(releases) == sorted([before, live_release(host)])
    assert not any(host.file(path).exists for path in stale)
