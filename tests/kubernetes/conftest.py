"""One rendering of the manifests for all tests that change no variable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import pytest

from tests.kubernetes.manifests import random_secrets, render


class Rendered(NamedTuple):
    """Where the manifests are, and the secrets in them."""

    directory: Path
    secrets: dict[str, Any]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Rendered:
    """The manifests of the defaults; the processes of pytest-xdist share them."""
    common = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        common = common.parent
    directory, values = common / "manifests", common / "manifests.json"
    with filelock.FileLock(common / "manifests.lock"):
        if not values.exists():
            secrets = random_secrets()
            render(directory, **secrets)
            values.write_text(json.dumps(secrets))
    return Rendered(directory, json.loads(values.read_text()))
