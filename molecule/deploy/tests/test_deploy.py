"""Rolling deploy and rollback: nobody is refused, nothing is lost, a release that fails a gate goes back by itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import EPHEMERAL, PROJECT
from shared.releases import release

from tests.chaos.host import Host
from tests.chaos.load import Load, not_successful

pytestmark = pytest.mark.timeout(900)

HOSTS = [Host("deploy-debian12"), Host("deploy-debian13")]
# Requests per second to each API host, and seconds until accepted tasks have run after the load.
RATE, DRAIN = 2, 60
READY = "http://127.0.0.1:8000/health/ready"
WORKER_PID = "supervisorctl pid typesafe-celery-worker 2>/dev/null || systemctl show -P MainPID typesafe-celery"


def playbook(name: str, **variables: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *("ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", f"--extra-vars={json.dumps(variables)}"),
            str(PROJECT / "playbooks/ops" / f"{name}.yml"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )


def test_the_installed_state_was_found_healthy() -> None:
    """Also where the API is open to other hosts."""
    for host in HOSTS:
        assert "healthy.json" in host.run("ls /var/lib/typesafe-manifest")


def live(host: Host) -> str:
    """Return the id of the host's live release."""
    return host.run("readlink /opt/typesafe/backend").rpartition("/")[2].partition("-")[0]


def running(host: Host) -> set[str]:
    """Return the ids of the releases that API and worker run."""
    pids = (host.main_pid("typesafe-api"), int(host.run(WORKER_PID)))
    return {host.run(f"readlink /proc/{pid}/cwd").rpartition("/")[2].partition("-")[0] for pid in pids}


@contextmanager
def load(*to: Host) -> Iterator[None]:
    """Send tasks to API hosts meanwhile, all unless some are named: they are accepted at once, and succeed."""
    with ExitStack() as stack:
        streams = [stack.enter_context(Load(host.url, HOSTS[0].api_key, RATE)) for host in to or HOSTS]
        yield
    for stream in streams:
        print(len(stream.accepted), stream.refused, stream.unanswered, stream.slowest)  # noqa: T201 - shown on failure
        assert (stream.refused, stream.given_up, stream.wrong) == (0, 0, [])
        # Other scenarios of `make test` run beside this one: the client may have to ask again.
        assert stream.unanswered == 0 or "SHORT_RUN" in os.environ
    lost = {task: "" for stream in streams for task in stream.accepted}
    assert lost
    deadline = time.monotonic() + DRAIN
    while lost and time.monotonic() < deadline:
        lost = not_successful(HOSTS[1].url, HOSTS[1].api_key, lost)
        time.sleep(1)
    assert not lost


def assert_well(release_id: str) -> None:
    """Check that all hosts run a release, and take work."""
    for host in HOSTS:
        assert live(host) == release_id
        assert running(host) == {release_id}
        assert host.run("ls /run/typesafe-api.drained", check=False) == ""
        assert host.run(f"curl -s -o /dev/null -w '%{{http_code}}' {READY}") == "200"


def test_a_deployment_rejects_nobody_and_loses_nothing(tmp_path: Path) -> None:
    before = live(HOSTS[0])
    flower = HOSTS[1].main_pid("typesafe-flower")
    new = release(tmp_path, "new")
    with load():
        deployed = playbook("deploy", **new)
    assert deployed.returncode == 0, deployed.stdout[-3000:]
    assert live(HOSTS[0]) != before
    assert_well(live(HOSTS[0]))

    again = playbook("deploy", **new)
    assert again.returncode == 0, again.stdout[-3000:]
    assert re.findall("changed=(?!0 ).*", again.stdout) == []
    # It is no part of the release.
    assert HOSTS[1].main_pid("typesafe-flower") == flower

    (tools := tmp_path / "platform.txt").write_text((PROJECT / "requirements/platform.txt").read_text() + "# other\n")
    api = HOSTS[1].main_pid("typesafe-api")
    other = playbook("deploy", **new, platform_tools_requirements=str(tools))
    assert other.returncode == 0, other.stdout[-3000:]
    assert HOSTS[1].main_pid("typesafe-api") == api
    pid = HOSTS[1].main_pid("typesafe-flower")
    assert pid != flower
    assert HOSTS[1].run(f"readlink /proc/{pid}/cwd") == HOSTS[1].run("readlink /opt/typesafe/platform")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("the API does not start", "The API could take work"),
        pytest.param("the worker does not start", "Start the workers' units", marks=pytest.mark.long),
        pytest.param("the task always fails", "It was not touched", marks=pytest.mark.long),
        pytest.param("the task fails in a worker", "A worker of this host runs one of them", marks=pytest.mark.long),
    ],
)
def test_a_release_that_fails_a_gate_goes_back(tmp_path: Path, fault: str, words: str) -> None:
    before = live(HOSTS[0])
    untouched = HOSTS[1].main_pid("typesafe-api")
    deployed = playbook("deploy", **release(tmp_path, "broken", fault))
    assert deployed.returncode != 0
    said = " ".join(deployed.stdout.split())
    assert words in said
    assert "deploy-debian12 did not pass" in said
    assert f"deploy-debian12, deploy-debian13: {before}" in said
    assert_well(before)
    assert HOSTS[1].main_pid("typesafe-api") == untouched


@pytest.mark.long
def test_a_rollback_says_what_it_would_do_then_does_it() -> None:
    now = live(HOSTS[0])
    shown = playbook("rollback")
    assert shown.returncode == 0, shown.stdout[-3000:]
    found = re.search(r"With -e confirm=yes all hosts go to (\w+)", " ".join(shown.stdout.split()))
    assert found is not None, shown.stdout
    assert "was never live" in shown.stdout  # those that failed
    assert_well(now)
    with load():
        done = playbook("rollback", confirm="yes")
    assert done.returncode == 0, done.stdout[-3000:]
    assert found[1] != now
    assert_well(found[1])
    assert "broken" not in HOSTS[0].run("cat /opt/typesafe/backend/app/CHANGE", check=False)


def test_a_release_that_is_not_kept_is_rejected() -> None:
    rejected = playbook("rollback", confirm="yes", release="0123456789ab")
    assert rejected.returncode != 0
    said = " ".join(rejected.stdout.split())
    assert "deploy-debian12, deploy-debian13: there is no complete release 0123456789ab" in said


def test_a_host_without_a_release_is_for_site_yml() -> None:
    rejected = playbook("deploy", app_name="another")
    assert rejected.returncode != 0
    assert "deploy-debian12 has no release yet: run site.yml first." in " ".join(rejected.stdout.split())


def pool_sizes() -> list[int]:
    """Return how many tasks each host's worker runs at once."""
    answers = json.loads(HOSTS[0].run("/usr/local/sbin/typesafe-admin inspect stats --json --timeout=5"))
    return [len(answers[f"default@{host.name}"]["pool"]["processes"]) for host in HOSTS]


@pytest.mark.long
def test_a_pool_grows_and_shrinks_without_a_restart() -> None:
    pids = [host.run(WORKER_PID) for host in HOSTS]
    before = pool_sizes()
    # The second time from a size that no file knows.
    for size in (before[0] + 2, before[0] + 1, before[0]):
        scaled = playbook("scale_workers", concurrency=size)
        assert scaled.returncode == 0, scaled.stdout[-3000:]
        assert f"celery_worker_concurrency: {size}" in scaled.stdout
        assert pool_sizes() == [size, size]
    assert [host.run(WORKER_PID) for host in HOSTS] == pids


@pytest.mark.long
def test_a_host_is_taken_out_of_service_under_load() -> None:
    """Last, because it does not come back."""
    gone, stays = HOSTS
    with load(stays):
        for what in ("worker", "api"):
            removed = playbook(f"remove_{what}", host=gone.name, confirm="yes")
            assert removed.returncode == 0, removed.stdout[-3000:]
    assert gone.main_pid("typesafe-api") == gone.main_pid("typesafe-celery") == 0
    units = "typesafe-api.socket typesafe-api typesafe-celery"
    assert set(gone.run(f"systemctl is-enabled {units}", check=False).split()) == {"disabled"}
