"""A release on a host, as the role app_release unpacks it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.support import INLINE, REPOSITORY


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
