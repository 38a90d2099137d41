"""The sandbox of a worker that supervisor runs, as root on this machine; molecule/celery_worker has a worker in it."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import REPOSITORY

pytestmark = [pytest.mark.integration, pytest.mark.attack("a mount namespace without other services' secrets")]

PROGRAM = REPOSITORY / "roles/celery_worker/files/worker-sandbox"
LOOK = """
import json, os, sys
from pathlib import Path
def readable(path):
    try:
        return os.listdir(path)
    except OSError:
        return None
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
mounts = {line.split()[4]: line.split()[5].split(",") for line in Path("/proc/self/mountinfo").read_text().splitlines()}
places = sys.argv[1:]
print(json.dumps({
    "pid": os.getpid(), "ids": [os.getuid(), os.getgid(), os.getgroups()],
    "status": {name: status[name].strip() for name in ("CapEff", "CapBnd", "CapInh", "NoNewPrivs")},
    "seen": {place: readable(place) for place in places}, "root": mounts["/"], "tmp": os.listdir("/tmp"),
    "shared": os.readlink("/proc/self/ns/mnt"), "flags": mounts,
}))
"""


@pytest.fixture
def secrets() -> Iterator[Path]:
    """Directories of secrets that everybody might read; not below /tmp, which is another one inside."""
    place = Path(tempfile.mkdtemp(dir="/run", prefix="sandbox-test."))
    place.chmod(0o755)
    for service in ("worker", "operator", "api"):
        (place / service).mkdir(mode=0o755)
        (place / service / "KEY").write_text("x")
    yield place
    shutil.rmtree(place)


def test_what_runs_inside_has_its_own_secrets_and_nothing_else(secrets: Path) -> None:
    places = [str(secrets / service) for service in ("worker", "operator", "api")]
    with subprocess.Popen(
        [PROGRAM, "nobody", "nogroup", secrets / "worker", "/usr/bin/python3", "-c", LOOK, *places, "/home", "/srv"],
        stdout=subprocess.PIPE,
        text=True,
        env={"WORKER_WRITABLE_PATHS": str(secrets / "worker"), "PATH": "/usr/bin:/usr/sbin"},
    ) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output)
    # Signals of supervisor reach the worker itself.
    assert found["pid"] == process.pid
    assert found["ids"][0] != 0
    assert found["ids"][2] == []
    nothing = "0" * 16
    assert found["status"] == {"CapEff": nothing, "CapBnd": nothing, "CapInh": nothing, "NoNewPrivs": "1"}
    assert found["seen"] == {**dict.fromkeys([*places, "/home", "/srv"]), places[0]: ["KEY"]}
    assert "ro" in found["root"]
    assert "rw" in found["flags"][places[0]]
    assert found["tmp"] == []
    assert found["shared"] != str(Path("/proc/self/ns/mnt").readlink())
    # Nothing of it is seen outside.
    assert (secrets / "operator/KEY").read_text() == "x"
    assert "worker-sandbox" not in Path("/proc/self/mountinfo").read_text()
