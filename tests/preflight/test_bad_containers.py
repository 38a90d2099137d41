"""What containers would not get along with is rejected in one sentence, too, before the engine is asked."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest

from tests.preflight.cases import HERE, REDIS_USERS, SECRETS
from tests.support import ansible_report

pytestmark = pytest.mark.timeout(600)

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "route": ({"task_routes": {"app.report": "slow"}}, "no pool takes from it"),
    "pools": ({"celery_worker_pools": [{"name": "slow", "queues": ["slow"]}]}, "takes from the queue 'celery'"),
    "ports": ({"flower_port": 8000}, "api_port is 8000, flower_port 8000"),
    "replicas": ({"broker_replicas_wanted": 1}, "broker_replicas_wanted 1"),
    "console-port": ({"app_has_metrics": False, "console_port": 8000}, "console_port 8000"),
    "sandbox": ({"app_release_sandbox": ["MemoryDenyWriteExecute=no"]}, "have no unit that it could override"),
    "volume": ({"app_release_shared": {"media": "My_Files"}}, "app_release_shared has the directory 'My_Files'"),
    "package": ({"app_release_packages": ["libpq5 && true"]}, "app_release_packages has 'libpq5 && true'"),
    "beat": ({"celery_beat": True, "celery_beat_memory_max": "1M"}, "celery_beat_memory_max is 1M"),
    "command": ({"redis_disabled_commands": ["flushal"]}, "is flushall meant?"),
    "option": ({"redis_extra_settings": {"hz": "many"}}, "gives hz the value"),
    "data": ({"app_redis_variables": {"CACHE": "data"}}, "containers have no Redis for it"),
    "python": ({"container_python": "python3.13"}, "container_python 'python3.13'"),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the preflight over all cases at once; return each host's error."""
    hosts = {}
    for name, (variables, _) in CASES.items():
        good: dict[str, Any] = {secret: secrets.token_urlsafe(48) for secret in SECRETS}
        good["redis_user_passwords"] = {user: secrets.token_urlsafe(24) for user in REDIS_USERS}
        hosts[name] = {**good, **variables, "private_network": True, "ansible_become": False}
    inventory = tmp_path_factory.mktemp("inventory") / "hosts.json"
    inventory.write_text(json.dumps({"all": {"children": {"compose": {"hosts": hosts}}}}))
    found = {}
    for play in ansible_report(f"--inventory={inventory}", HERE / "containers.yml")["plays"]:
        for task in play["tasks"]:
            for name, outcome in task["hosts"].items():
                if outcome.get("failed"):
                    items = [item["msg"] for item in outcome.get("results", []) if item.get("failed")]
                    found[name] = " ".join(" ".join(items or [outcome["msg"]]).split())
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_value_is_rejected(errors: dict[str, str], name: str) -> None:
    assert CASES[name][1] in errors[name]
