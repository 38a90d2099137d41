"""What the day-2 playbooks reject, in one sentence and before anything changes; this machine stands for all hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import REPOSITORY, ansible_report

pytestmark = pytest.mark.timeout(120)

GROUPS: dict[str, tuple[str, ...]] = {
    "redis": ("r1", "r2", "r3", "r4"),
    "sentinels": ("r1", "r2", "r3"),
    "api": ("a1",),
    "workers": ("w1", "w2"),
    "flower": (),
}
NAMES = sorted({name for names in GROUPS.values() for name in names})


def run(directory: Path, playbook: str, *arguments: str, **variables: object) -> tuple[str, dict[str, Any]]:
    """Run a playbook on hosts that are all this machine; return what it says, and its counts."""
    hosts = {name: {"ansible_connection": "local", "ansible_become": False} for name in NAMES}
    children: dict[str, Any] = {group: {"hosts": {name: {} for name in names}} for group, names in GROUPS.items()}
    inventory = directory / "hosts.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "children": children}}))
    extra = f"--extra-vars={json.dumps(variables)}"
    report = ansible_report(f"--inventory={inventory}", extra, *arguments, REPOSITORY / f"playbooks/{playbook}.yml")
    messages = [
        " ".join(f"{outcome.get('msg', '')} {outcome.get('stderr', '')}".split())
        for play in report["plays"]
        for task in play["tasks"]
        for outcome in task["hosts"].values()
        if outcome.get("failed") or (task["task"]["name"] == "Show what is done" and "msg" in outcome)
    ]
    return " ".join(messages), report["stats"]


@pytest.mark.parametrize(
    ("playbook", "variables", "words"),
    [
        ("ops/deploy", {"app_name": "nowhere"}, "w1 has no release yet: run site.yml first."),
        (
            "site/release",
            {
                "app_release_source": "/nowhere/shop",
                "app_celery": "shop.jobs",
                "app_release_requirements": "/nowhere/lock",
            },
            "app_release_requirements is /nowhere/lock, but there is no such file.",
        ),
        ("ops/remove_worker", {}, "host is '', but it must be one of w1, w2"),
        ("ops/remove_worker", {"host": "a1"}, "host is 'a1', but it must be one of w1, w2"),
        ("ops/remove_api", {"host": "a1"}, "a1 is the only host of the group api"),
        ("ops/remove_redis", {}, "host is '', but it must be one of r1, r2, r3, r4: write -e host=VALUE."),
        ("ops/remove_redis", {"host": "r3"}, "an odd number of three sentinels at least"),
        ("ops/remove_redis", {"host": "r3,r4,r2"}, "there would be the servers r1 and the sentinels r1"),
        ("ops/backup", {"backup_s3": "bucket"}, "backup_s3, where it is given, must have endpoint"),
        ("ops/backup", {}, "There is no backup_recipient, for whom"),
        ("ops/backup", {"backup_recipient": "age1xyz"}, "backup_recipient is 'age1xyz', which is no public key"),
        (
            "diagnose/dead_letters",
            {"operation": "drop"},
            "operation is 'drop', which needs -e task=ID,ID or -e task=all.",
        ),
        ("ops/move_queue", {"from": "a", "to": "a"}, "from and to are both 'a': write two different queues."),
        (
            "ops/scale_workers",
            {},
            "concurrency is '', but it must be a whole number from 1 on: write -e concurrency=VALUE.",
        ),
        ("ops/scale_workers", {"concurrency": True}, "concurrency is 'True'"),
        (
            "ops/scale_workers",
            {"concurrency": 4, "pool": "none"},
            "pool is 'none', but it must be one of default, or left out",
        ),
        ("ops/scale_workers", {"concurrency": 1001}, "concurrency must be 1000 at most"),
        (
            "ops/scale_workers",
            {"concurrency": 2001, "celery_worker_pools": [{"name": "default", "pool": "asyncio"}]},
            "concurrency must be 2000 at most",
        ),
        (
            "ops/scale_workers",
            {"concurrency": 4, "celery_worker_pools": [{"name": "default", "pool": "threads"}]},
            "one with threads changes its size with the inventory",
        ),
    ],
)
def test_what_cannot_go_well_is_rejected(tmp_path: Path, playbook: str, variables: dict[str, Any], words: str) -> None:
    said, counts = run(tmp_path, playbook, **variables)
    assert words in said
    assert [host["changed"] for host in counts.values() if host["changed"]] == []
    assert any(host["failures"] for host in counts.values())


def test_a_release_that_cannot_be_packed_stops_the_installation_before_a_host_is_changed() -> None:
    plays = [play["ansible.builtin.import_playbook"] for play in yaml.safe_load((REPOSITORY / "site.yml").read_text())]
    assert plays.index("playbooks/site/release.yml") < plays.index("playbooks/site/hosts.yml")


@pytest.mark.parametrize("playbook", ["ops/rotate_secrets", "ops/retire_secrets"])
def test_secrets_are_changed_for_all_hosts_or_none(tmp_path: Path, playbook: str) -> None:
    said, counts = run(tmp_path, playbook, "--limit=w1")
    assert "a1, r1, r2, r3, r4, w2 is left out by --limit" in said
    assert [host["changed"] for host in counts.values() if host["changed"]] == []


@pytest.mark.parametrize(
    ("playbook", "variables", "words"),
    [
        ("ops/remove_worker", {"host": "w2"}, "w2"),
        ("ops/remove_redis", {"host": "r4", "redis_password": "none"}, "r4"),
        ("ops/move_queue", {"from": "a", "to": "b"}, "all tasks that wait in a go into b"),
        ("ops/upgrade_redis", {}, "is installed on r1, then r2, then r3, then on r4."),
        ("diagnose/dead_letters", {"operation": "drop", "task": "x, y"}, "x, y are deleted for good"),
    ],
)
def test_without_confirm_it_says_what_it_would_do(
    tmp_path: Path, playbook: str, variables: dict[str, Any], words: str
) -> None:
    said, counts = run(tmp_path, playbook, **variables)
    assert said.startswith("Nothing was changed. With -e confirm=yes: ")
    assert words in said
    assert not any(host["changed"] or host["failures"] for host in counts.values())
