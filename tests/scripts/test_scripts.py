"""The scripts stop at the first thing that fails and say so in one sentence."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from celery_durable.testing import free_port
from tests.support import REPOSITORY, load_plugin


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


def test_an_applications_requirements_are_locked_with_the_hashes_of_its_wheels(tmp_path: Path) -> None:
    def lock(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(REPOSITORY / "scripts/lock.sh"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def wheel(name: str, version: str, *metadata: str, tag: str = "py3-none-any") -> str:
        """Make a wheel; return what a lock says of it."""
        path = tmp_path / f"parts/{name}-{version}-{tag}.whl"
        path.parent.mkdir(exist_ok=True)
        with ZipFile(path, "w") as parts:
            information = f"{name}-{version}.dist-info"
            lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata, ""]
            parts.writestr(f"{information}/METADATA", "\n".join(lines))
            parts.writestr(f"{information}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            parts.writestr(f"{information}/RECORD", "")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return f"{name}=={version} \\\n    --hash=sha256:{digest}\n"

    ours = dict(re.findall(r"^(\S+)==(\S+)", (REPOSITORY / "requirements/app.txt").read_text(), re.MULTILINE))
    locked_lines = [
        # What the library needs beside it, in the versions that it works with.
        wheel("click", ours["click"]),
        wheel("kombu", ours["kombu"], "Provides-Extra: redis", 'Requires-Dist: packaging ==1 ; extra == "redis"'),
        wheel("packaging", "1"),
        wheel("redis", ours["redis"]),
        wheel("shop", "1.2", "Requires-Dist: kombu"),
    ]
    only_these = ("--no-index", f"--find-links={tmp_path}/parts")
    wanted, locked = tmp_path / "requirements.in", tmp_path / "requirements.lock"

    wheel("packaging", "2")
    # Celery needs a later click, and the library a later Redis client.
    wanted.write_text("shop>=1\nredis<5\npackaging\nclick==8.1.3\n")
    assert lock(wanted, locked, *only_these).returncode == 0
    assert locked.read_text() == "".join(locked_lines)
    # The API's unit needs a later uvicorn. Its extras stay, and so does a locked version.
    server = [wheel("uvicorn", "0.30", "Provides-Extra: standard", 'Requires-Dist: websockets ; extra == "standard"')]
    wheel("uvicorn", "0.18.2", "Provides-Extra: standard", 'Requires-Dist: websockets ; extra == "standard"')
    server.append(wheel("websockets", "9"))
    wanted.write_text("uvicorn[standard]==0.18.2\n")
    for _ in range(2):
        assert lock(wanted, served := tmp_path / "served.lock", *only_these).returncode == 0
        assert served.read_text() == "".join(server)
        wheel("uvicorn", "0.31")
    # A host has CPython: what lacks wheels for PyPy, like msgpack, is locked.
    wheel("msgpack", "1", tag="cp311-abi3-manylinux_2_17_x86_64")
    pypy = "platform_python_implementation {} 'PyPy'".format
    wanted.write_text(f"msgpack\npackaging==1; {pypy('==')}\npackaging==2; {pypy('!=')}\n")
    assert lock(wanted, tmp_path / "channels.lock", *only_these).returncode == 0
    wanted.write_text("shop>=2\n")
    failed = lock(wanted, locked, *only_these)
    assert failed.returncode != 0
    assert "shop>=2" in failed.stderr
    assert f"error: {wanted} is not locked, for the reason above" in failed.stderr
    assert "1.2" in locked.read_text()
    wheel("psycopg2", "2.9", tag="cp313-cp313-win_amd64")
    wanted.write_text("psycopg2\n")
    assert "psycopg2" in lock(wanted, locked, *only_these).stderr
    for name, text in (("pyproject.toml", "[tool.poetry.dependencies]\nshop = '^1'\n"), ("Pipfile", "[packages]\n")):
        (tmp_path / name).write_text(text)
        failed = lock(tmp_path / name, locked)
        assert "has no list of requirements that can be locked" in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
    assert f"error: {tmp_path}/none.in is no file" in lock(tmp_path / "none.in", locked).stderr
    assert f"like {tmp_path}/requirements.lock" in lock(wanted).stderr


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
    assert "packaging 26.3 has PYSEC-0000-1, fixed in 99.1." in result.stdout


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
        str(REPOSITORY / "playbooks/ops/generate_secrets.yml"),
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
    assert len(set(values)) == 19
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


# The images of containers

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64
SKOPEO = """#!/bin/sh
[ "$1 $2 $3" = "inspect --no-tags --format={{.Digest}}" ] || exit 2
case "$4" in
docker://registry.example.com/library/redis:8.0) echo "$DIGEST" ;;
*) echo "manifest unknown: $4" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A repository of its own that names images, and a registry that knows one of them."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPOSITORY / "scripts/pin_images.py", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/skopeo").write_text(SKOPEO)
    (tmp_path / "bin/skopeo").chmod(0o755)
    subprocess.run(["git", "-C", str(tmp_path), "init", "--quiet"], check=True)

    def run(*options: str, digest: str = NEW, **files: str) -> subprocess.CompletedProcess[str]:
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        subprocess.run(["git", "-C", str(tmp_path), "add", "--all"], check=True)
        command = [sys.executable, str(tmp_path / "scripts/pin_images.py"), *options]
        env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "DIGEST": digest}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    return run


Pin = Callable[..., subprocess.CompletedProcess[str]]
REDIS = "registry.example.com/library/redis:8.0"


def test_old_digests_of_images_are_replaced_in_every_file(images: Pin, tmp_path: Path) -> None:
    named = f"image: {REDIS}@{OLD}\nother: {REDIS}\n"
    checked = images("--check", one=named, two=named)
    assert (checked.returncode, checked.stdout) == (1, f"{REDIS}: {OLD} is now {NEW}\n")
    assert (tmp_path / "one").read_text() == named
    assert images().returncode == 0
    assert {(tmp_path / name).read_text() for name in ("one", "two")} == {named.replace(OLD, NEW)}
    again = images("--check")
    assert (again.returncode, again.stdout) == (0, "")


@pytest.mark.parametrize("digest", ["", "sha256:short", "latest"])
def test_an_image_that_cannot_be_looked_up_leaves_all_as_it_is(images: Pin, tmp_path: Path, digest: str) -> None:
    named = f"{REDIS}@{OLD}\n"
    rejected = images(one=named, digest=digest)
    assert rejected.returncode == 1
    assert f"{REDIS} cannot be looked up" in rejected.stderr
    unknown = images(two=f"registry.example.com/library/unknown:1@{OLD}\n")
    assert "manifest unknown" in unknown.stderr
    assert (tmp_path / "one").read_text() == named


def test_every_image_of_a_registry_is_named_with_its_digest() -> None:
    pin_images = load_plugin("scripts/pin_images.py")
    named = pin_images.pinned(REPOSITORY)
    # One digest for each image, in all files.
    images = {image for found in named.values() for image in found}
    assert len(images) == len({image for image, _ in images}) == 2
    places = [
        REPOSITORY / "app/Containerfile",
        *(REPOSITORY / "roles").rglob("*.yml"),
        *(REPOSITORY / "deploy").rglob("*.yml"),
    ]
    for file in places:
        for image in re.findall(r"docker\.io/[^\s\"']+", file.read_text()):
            assert pin_images.PINNED.fullmatch(image), f"{file}: {image}"


def test_no_package_of_the_controller_is_built_from_source() -> None:
    text = (REPOSITORY / "scripts/setup.sh").read_text().replace("\\\n", " ")
    installs = [line for line in text.splitlines() if 'pip" install' in line]
    own = [line for line in installs if '--editable "$root/packages/' in line]
    assert all("--no-deps" in line and "--no-build-isolation" in line for line in own)
    others = [line for line in installs if line not in own]
    assert others
    assert all("--only-binary=:all:" in line and "--require-hashes" in line for line in others)


def test_a_checkout_that_everybody_may_write_is_rejected_in_one_sentence(tmp_path: Path) -> None:
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
