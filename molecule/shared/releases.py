"""Releases to deploy: the application with a change, and perhaps with a fault that its own check does not see."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])

# What a fault puts where: file, the text that it goes before, and its own.
FAULTS = {
    "the API does not start": ("main.py", "    settings, options = get_settings()", "    raise RuntimeError\n"),
    "the worker does not start": (
        "agents/worker.py",
        "celery_app = Celery(",
        'import sys\n\nif "worker" in sys.argv:\n    raise RuntimeError\n\n',
    ),
    "the task always fails": (
        "agents/tasks/example_task.py",
        "    try:\n        for number",
        "    raise RuntimeError\n",
    ),
    "the task fails in a worker": (
        "agents/tasks/example_task.py",
        "    try:\n        for number",
        "    if not self.request.is_eager:\n        raise RuntimeError\n",
    ),
}


def release(place: Path, name: str, fault: str = "") -> dict[str, str]:
    """Write a release below ``place``; return the variables that deploy it."""
    source = place / name
    shutil.copytree(PROJECT / "app", source / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT / "requirements", source / "requirements")
    (source / "app/CHANGE").write_text(f"{name}\n")
    if fault:
        file, before, text = FAULTS[fault]
        path = source / "app" / file
        content = path.read_text()
        assert content.count(before) == 1, f"{path} has changed"
        path.write_text(content.replace(before, text + before))
    return {"app_release_source": str(source), "app_release_cache": str(PROJECT / ".cache/releases")}
