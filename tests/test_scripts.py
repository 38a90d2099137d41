"""The scripts stop at the first thing that fails and say so in one sentence."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support import REPOSITORY, free_port


def test_setup_stops_when_the_package_index_cannot_be_reached(tmp_path: Path) -> None:
    for folder in ("scripts", "requirements"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
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
    first, second = (subprocess.run([script], capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second
    assert len(first.strip()) >= 40
    assert (tmp_path / ".secrets/vault-password").stat().st_mode & 0o777 == 0o600
