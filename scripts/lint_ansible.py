#!/usr/bin/env python3
"""Runs ansible-lint with one syntax check for all files.

By itself it starts Ansible 130 times, for each playbook, role and import, which takes three quarters of its time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml
from ansible_compat.runtime import Runtime
from ansiblelint.__main__ import main
from ansiblelint.errors import MatchError
from ansiblelint.file_utils import Lintable
from ansiblelint.runner import Runner

check_one_by_one = Runner._map_syntax_check_workers  # noqa: SLF001


def check_at_once(
    runner: Runner, worker: Callable[[Lintable], list[MatchError]], files: list[Lintable]
) -> list[list[MatchError]]:
    """Check playbooks and roles in one process; when that fails, one by one, which finds out where it fails."""
    playbooks = [str(file.path) for file in files if file.kind == "playbook"]
    roles = [str(file.path) for file in files if file.kind == "role"]
    imports = [
        {"name": "Import", "ansible.builtin.import_role": {"name": str(Path(role).absolute())}} for role in roles
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as play:
        yaml.safe_dump([{"name": "All roles", "hosts": "localhost", "tasks": imports}], play)
        play.flush()
        command = ["ansible-playbook", "--syntax-check", *playbooks, play.name]
        if subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603
            return check_one_by_one(runner, worker, files)

    # What a playbook imports was checked with it.
    def has_playbook(_: Runtime, playbook: str, *, basedir: Path | None = None) -> bool:  # noqa: ARG001
        return Path(playbook).exists()

    Runtime.has_playbook = has_playbook  # type: ignore[assignment,method-assign]
    return []


if __name__ == "__main__":
    Runner._map_syntax_check_workers = check_at_once  # type: ignore[assignment,method-assign]  # noqa: SLF001
    sys.exit(main())
