"""No playbook shows a secret, at -vvv and --diff: every task of each is run with secret values, without a host.

tests/plugins/strategy/standin.py says how. molecule/default does the same with site.yml and real hosts.
"""

import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.preflight.cases import REDIS_USERS, SECRETS
from tests.support import REPOSITORY

# A hundred thousand lines are printed on the way.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.attack("secrets in no argument, no environment of a task and no difference"),
]

GROUPS = ("redis", "sentinels", "workers", "api", "flower", "balancers", "monitoring", "logs", "compose")
# What the playbooks want to be told; none of it is there.
TOLD = {"confirm": "yes", "backup": "/nowhere", "host": "one", "to": "one", "task": "x", "inventory": "/nowhere"}
TOLD |= {"interval": "weekly", "operation": "list"}
# Others import it; as site.yml imports those of playbooks/site.
PART = REPOSITORY / "playbooks/ops/roll_out.yml"
FURTHER = ("groq_api_key", "gemini_api_key", "supabase_key", "redis_tls_key", "redis_tls_ca_key", "backup_key")
PLAYBOOKS = sorted(
    path
    for folder in ("containers", "diagnose", "ops", "runbooks")
    for path in (REPOSITORY / "playbooks" / folder).glob("*.yml")
    if path != PART
)


def vault() -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a vault file has, and each value by its name."""
    content: dict[str, Any] = {name: secrets.token_urlsafe(48) for name in (*SECRETS, *FURTHER)}
    content["redis_tls_ca_key"] = f"BEGIN PRIVATE KEY {content['redis_tls_ca_key']}"
    content["redis_user_passwords"] = {user: secrets.token_urlsafe(24) for user in REDIS_USERS}
    content["previous_secrets"] = {"backend_api_key": secrets.token_urlsafe(48)}
    bucket = {"access_key": secrets.token_urlsafe(24), "secret_key": secrets.token_urlsafe(24)}
    content["backup_s3"] = {"endpoint": "http://127.0.0.1:1", "region": "r", "bucket": "b", **bucket}
    values = {name: value for name, value in content.items() if isinstance(value, str)}
    values |= {f"{user}'s password": value for user, value in content["redis_user_passwords"].items()}
    return content, values | bucket | {"previous key": content["previous_secrets"]["backend_api_key"]}


def shown(directory: Path, *playbooks: Path) -> list[str]:
    """Run playbooks; return a line for each secret that one of their tasks shows."""
    content, values = vault()
    variables = {"ansible_connection": "local", "redis_tls": True, "redis_tls_ca": "BEGIN CERTIFICATE", **content}
    hosts = {"one": {"private_address": "10.0.0.1"}, "localhost": {}}
    children: dict[str, Any] = {group: {"hosts": {"one": {}}} for group in GROUPS}
    inventory = directory / "hosts.json"
    inventory.write_text(json.dumps({"all": {"vars": variables, "hosts": hosts, "children": children}}))
    plugins = REPOSITORY / "tests/plugins/strategy"
    told = [f"--extra-vars={json.dumps(TOLD)}"]
    run = subprocess.run(
        ["ansible-playbook", f"--inventory={inventory}", "-vvv", "--diff", *told, *playbooks],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "ANSIBLE_STRATEGY": "standin",
            "ANSIBLE_STRATEGY_PLUGINS": str(plugins),
            "PYTHONPATH": str(plugins),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=540,
    )
    assert "PLAY RECAP" in run.stdout, run.stdout[-2000:]
    found, task = [], ""
    for line in run.stdout.splitlines():
        task = line if line.startswith("task path: ") else task
        found += [f"{name} in {task.removeprefix('task path: ')}" for name, value in values.items() if value in line]
    return sorted(set(found))


def test_the_installation_shows_none(tmp_path: Path) -> None:
    assert shown(tmp_path, REPOSITORY / "site.yml") == []


@pytest.mark.parametrize("share", range(8))
def test_no_playbook_shows_one(tmp_path: Path, share: int) -> None:
    assert shown(tmp_path, *PLAYBOOKS[share::8]) == []


@pytest.mark.parametrize(
    "task",
    [
        {"ansible.builtin.command": "true", "environment": {"PASSWORD": "{{ redis_password }}"}},
        {"ansible.builtin.command": "true {{ redis_password }}", "when": False},
        {"ansible.builtin.debug": {"msg": "x"}, "loop": ["{{ redis_password }}"]},
        {"ansible.builtin.set_fact": {"kept": "{{ redis_password }}"}},
        {"ansible.builtin.uri": {"url": "http://127.0.0.1:1", "headers": {"X-API-Key": "{{ redis_password }}"}}},
        {"block": [{"ansible.builtin.fail": {}}], "rescue": [{"ansible.builtin.debug": {"var": "redis_password"}}]},
    ],
)
def test_what_shows_one_is_found(tmp_path: Path, task: dict[str, Any]) -> None:
    playbook = tmp_path / "playbook.yml"
    playbook.write_text(json.dumps([{"hosts": "one", "gather_facts": False, "tasks": [task]}]))
    assert [line.split()[0] for line in shown(tmp_path, playbook)] == ["redis_password"]
