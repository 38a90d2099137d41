"""The scripts stop at the first thing that fails and say so in one sentence."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import REPOSITORY, free_port


def test_setup_stops_when_the_package_index_cannot_be_reached(tmp_path: Path) -> None:
    for folder in ("scripts", "requirements"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    # The scanner is there already: one environment is enough to see that nothing arrives.
    lock, scanner = tmp_path / "requirements/checkov.txt", tmp_path / ".cache/checkov/installed"
    scanner.parent.mkdir(parents=True)
    scanner.write_text(f"{hashlib.sha256(lock.read_bytes()).hexdigest()}  {lock}\n")
    unreachable = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"http://127.0.0.1:{free_port()}/",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
    }
    result = subprocess.run(
        [tmp_path / "scripts/setup.sh", "dev"],
        env={**os.environ, **unreachable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert 'error: "Install Python packages (dev)" failed: check the network.' in result.stderr
    assert not (tmp_path / ".venv" / "dev.installed").exists()


def test_the_vault_password_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")
    script = tmp_path / "scripts/vault-password.sh"
    # Several at once: ansible-lint asks from each of its processes.
    running = [subprocess.Popen([script], stdout=subprocess.PIPE, text=True) for _ in range(20)]
    answers = {process.communicate()[0] for process in running}
    assert {process.returncode for process in running} == {0}
    assert len(answers) == 1
    assert len(answers.pop().strip()) >= 40
    assert (tmp_path / ".secrets/vault-password").stat().st_mode & 0o777 == 0o600


AUDITED = "packaging==26.3 --hash=sha256:" + "0" * 64 + "\n"


def audit(file: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts/audit.py"), str(file)]
    env = {**os.environ, "AUDIT_OSV_URL": url, "AUDIT_TIMEOUT": "2", "XDG_CACHE_HOME": str(file.parent)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    file = tmp_path / "locked.txt"
    file.write_text(AUDITED)
    return file


@pytest.fixture
def service() -> Iterator[tuple[str, dict[str, object]]]:
    """Something that answers like a service for vulnerabilities; the answer can be changed."""
    answer: dict[str, object] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", answer
    server.shutdown()
    server.server_close()


def test_audit_says_when_nobody_can_be_asked(locked: Path) -> None:
    """Not to be mistaken for "nothing found", nor for "something found"."""
    result = audit(locked, f"http://127.0.0.1:{free_port()}/")
    assert result.returncode == 2
    assert "could not be audited: no service for vulnerabilities can be reached" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_audit_tells_what_it_finds(locked: Path, service: tuple[str, dict[str, object]]) -> None:
    url, answer = service
    result = audit(locked, url)
    assert result.returncode == 0
    assert result.stdout.endswith("locked.txt: 1 packages looked up.\n")
    versions = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}
    affected = [{"package": {"name": "packaging", "ecosystem": "PyPI"}, "ranges": [versions]}]
    answer["vulns"] = [
        {"id": "PYSEC-0000-1", "affected": affected, "details": "-", "published": "2026-01-01T00:00:00Z"}
    ]
    result = audit(locked, url)
    assert result.returncode == 1
    assert "packaging 26.3 has PYSEC-0000-1, mended in 99.1." in result.stdout


def test_audit_does_not_pass_what_could_not_be_looked_up() -> None:
    """A mirror that has no vulnerabilities' data answers 404, which pip-audit counts as "none known"."""
    code = "import sys; sys.path.insert(0, 'scripts'); import audit; "
    code += "audit.audit = lambda _: ([{'name': 'a', 'skip_reason': 'x'}, {'name': 'b', 'vulns': []}], '')"
    command = [sys.executable, "-c", f"{code}; sys.exit(audit.main(['locked.txt']))"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "the service knows nothing of 1 of 2 packages" in result.stdout


def test_parts_are_listed_with_version_hash_and_license(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts/sbom.py"), str(tmp_path)]
    files = [REPOSITORY / "requirements" / f"{name}.txt" for name in ("app", "controller")]
    subprocess.run([*command, *map(str, files)], check=True, capture_output=True)
    for file in files:
        parts = json.loads((tmp_path / f"{file.stem}.cdx.json").read_text())["components"]
        locked = [line for line in file.read_text().splitlines() if "==" in line]
        assert sorted(f"{part['name']}=={part['version']}" for part in parts) == sorted(
            line.partition(" ")[0] for line in locked
        )
        assert all(part["externalReferences"][0]["hashes"] for part in parts)
        assert sum(bool(part["licenses"]) for part in parts) >= len(parts) - 3, "what other systems need has none here"


def test_locked_files_name_no_index() -> None:
    for file in (REPOSITORY / "requirements").glob("*.txt"):
        assert not [line for line in file.read_text().splitlines() if "://" in line or line.startswith("-")], file


def test_secrets_are_written_encrypted_and_never_replaced(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory"
    inventory.mkdir()
    vault = inventory / "group_vars/all/vault.yml"
    playbook = [
        "ansible-playbook",
        "-vvv",
        "--diff",
        str(REPOSITORY / "playbooks/secrets.yml"),
        "-e",
        f"inventory={inventory}",
    ]

    def run() -> str:
        result = subprocess.run(playbook, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout
        return result.stdout

    def secrets() -> dict[str, Any]:
        command = ["ansible-vault", "view", str(vault)]
        return dict(yaml.safe_load(subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout))

    shown = run()
    assert vault.read_text().startswith("$ANSIBLE_VAULT;")
    first = secrets()
    values = [value for value in first.values() if isinstance(value, str)] + list(
        first["redis_user_passwords"].values()
    )
    assert len(set(values)) == 16
    # Certificate and key of the authority have several lines, shown or not as one.
    lines = [line for value in values for line in value.splitlines() if not line.startswith("-----")]
    assert [line for line in lines if line in shown] == []

    # An inventory of the time before some of them existed.
    kept = {name: value for name, value in first.items() if name != "task_signing_key"}
    kept["redis_user_passwords"] = {"worker": first["redis_user_passwords"]["worker"]}
    vault.write_text(yaml.safe_dump(kept))
    subprocess.run(["ansible-vault", "encrypt", str(vault)], cwd=REPOSITORY, capture_output=True, check=True)
    assert "task_signing_key, redis_user_passwords." in run().replace("\n", " ")
    second = secrets()
    assert {name: second[name] for name in kept if name != "redis_user_passwords"} == {
        name: value for name, value in kept.items() if name != "redis_user_passwords"
    }
    assert second["redis_user_passwords"]["worker"] == first["redis_user_passwords"]["worker"]
    assert second["redis_user_passwords"].keys() == first["redis_user_passwords"].keys()
    assert "nothing was changed" in run().replace("\n", " ")
