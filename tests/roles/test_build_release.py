"""What the archive of a release holds besides the application."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.support import REPOSITORY, load_plugin

script = load_plugin("roles/app_release/files/build_release.py")
LOCK = REPOSITORY / "requirements/app.txt"
LIBRARIES = [REPOSITORY / "packages/celery-durable", REPOSITORY / "packages/durable-console"]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An application, and wheels without an index."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text("")
    monkeypatch.setattr(script, "download_wheels", lambda *arguments: arguments[-1].mkdir())
    return tmp_path


def packed(source: Path, lock: Path = LOCK) -> tuple[str, tarfile.TarFile]:
    (output := source / "out").mkdir(exist_ok=True)
    own = script.build_wheels(LIBRARIES, source)
    files = script.release_files(source, ["app"], [])
    release = script.build(source, "app", lock, files=files, own=own, python="3.13", machine="x86_64", output=output)
    return str(release["id"]), tarfile.open(str(release["archive"]))


def test_a_release_lists_its_parts(source: Path) -> None:
    identity, archive = packed(source)
    with archive:
        member = archive.getmember("sbom.cdx.json")
        assert (member.uid, member.gid, member.mode) == (0, 0, 0o644)
        stream = archive.extractfile(member)
        assert stream
        text = stream.read().decode()
        lock = archive.extractfile("requirements.txt").read().decode()  # type: ignore[union-attr]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    assert bom["metadata"]["component"] == {
        "bom-ref": "release",
        "type": "application",
        "name": "app",
        "version": identity,
    }
    locked = {tuple(line.split()[0].split("==")) for line in lock.splitlines() if "==" in line}
    assert {"celery-durable", "durable-console"} <= dict(locked).keys()
    assert {(part["name"], part["version"]) for part in bom["components"]} == locked
    hashes = {
        each["content"]
        for part in bom["components"]
        for there in part["externalReferences"]
        for each in there["hashes"]
    }
    assert all(each in lock for each in hashes)
    assert len(hashes) > len(locked)


def test_a_release_that_cannot_be_listed_is_not_packed(source: Path, tmp_path: Path) -> None:
    (lock := tmp_path / "lock.txt").write_text("-r no-such-file.txt\n")
    with pytest.raises(SystemExit, match="cyclonedx-bom"):
        packed(source, lock)
    assert list((source / "out").glob("*.tar")) == []


HASH = " \\\n    --hash=sha256:ab\n"


@pytest.mark.parametrize(
    ("celery", "refusal"),
    [
        ("celery==5.7.0", ""),
        ("Celery[redis,msgpack] ==5.7.0", ""),  # pip-tools
        ("celery == 5.7.0 ; python_version >= '3.11'", ""),  # Poetry's export
        ("celery===5.7.0", ""),
        ("celery==5.4.0", "celery 5.4.0, but it must be"),
        ("celery>=5.7", "name celery without ==VERSION"),
        ("celery @ https://example.com/celery-5.7.0-py3-none-any.whl", "name celery without ==VERSION"),
        ("kombu==5.7.0", "lack celery"),
        ("-r base.txt", "lack celery"),
        ("# celery==5.7.0", "lack celery"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_lock_has_what_the_platform_runs(celery: str, refusal: str, end: str) -> None:
    lock = f"uvicorn==0.30{HASH}{celery}{HASH}".replace("\n", end)
    if not refusal:
        script.check_lock(lock, ["celery>=5.7,<5.8", "uvicorn"])
        return
    with pytest.raises(SystemExit, match=refusal):
        script.check_lock(lock, ["celery>=5.7,<5.8", "uvicorn"])


LOCK_FOR_SEVERAL = """\
# what follows ; is a marker
async-timeout==5.0.1 ; python_full_version < '3.11.3' \\
    --hash=sha256:a1
colorama==0.4.6 ; sys_platform == 'win32' --hash=sha256:b1
django==5.2 ; python_full_version < '3.12' \\
    --hash=sha256:c1 \\
    --hash=sha256:c2
django==6.1; python_full_version >= '3.12' \\
    --hash=sha256:d1
sqlparse==0.6 --hash=sha256:e1
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("python", "pins"),
    [
        ("3.11", ["async-timeout==5.0.1 a1", "django==5.2 c1 c2", "sqlparse==0.6 e1"]),
        ("3.13", ["django==6.1 d1", "sqlparse==0.6 e1"]),
    ],
)
def test_a_host_gets_what_a_lock_has_for_its_python(python: str, pins: list[str], end: str) -> None:
    kept = script.host_requirements(LOCK_FOR_SEVERAL.replace("\n", end), python, "x86_64")
    lines = kept.replace(" \\\n   ", "").replace(" --hash=sha256:", " ").splitlines()
    assert [line for line in lines if not line.startswith("#")] == pins


def test_a_package_without_a_wheel_for_the_host_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit, match=r"^pip finds no wheel of psycopg2==2\.9 for Python 3\.13 on x86_64: "):
        script.download_wheels(f"psycopg2==2.9{HASH}", "3.13", "x86_64", tmp_path)
