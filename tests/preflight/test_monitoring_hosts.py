"""What monitoring hosts ask is where the exporters listen, with one of them and with two; and no group is missed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.preflight.cases import REDIS_USERS
from tests.support import REPOSITORY, ansible_report

pytestmark = pytest.mark.timeout(120)


def asked(
    directory: Path,
    monitoring: list[str],
    names: str = "ab",
    app: dict[str, Any] | None = None,
    members: dict[str, Any] | None = None,
    **env: str,
) -> dict[str, Any]:
    """Return what each of these hosts would ask, and its exporters' address."""
    hosts = {name: {"private_address": f"10.0.0.{number}"} for number, name in enumerate(names, 1)}
    common = {"redis_user_passwords": dict.fromkeys(REDIS_USERS, "x"), "metrics_api_key": "x", "redis_password": "x"}
    common |= app or {}
    groups: dict[str, Any] = {name: {"hosts": {host: {} for host in names}} for name in ("workers", "api")}
    groups |= {"redis": {"hosts": {"a": {}}}, "flower": {}, "monitoring": {"hosts": {name: {} for name in monitoring}}}
    groups |= members or {}
    inventory = directory / "hosts.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": common, "children": groups}}))
    report = ansible_report(f"--inventory={inventory}", REPOSITORY / "tests/preflight/monitoring.yml", **env)
    outcomes = {name: told for task in report["plays"][0]["tasks"] for name, told in task["hosts"].items()}
    return {name: told["msg"] for name, told in outcomes.items()}


def test_a_single_monitoring_host_asks_itself_at_the_loopback_address(tmp_path: Path) -> None:
    told = asked(tmp_path, ["a"])
    assert told["a"]["bind"] == "127.0.0.1"
    assert told["b"]["bind"] == "10.0.0.2"
    assert {node["address"] for node in told["a"]["nodes"]} == {"127.0.0.1:9100", "10.0.0.2:9100"}


def test_two_monitoring_hosts_ask_where_the_exporters_listen(tmp_path: Path) -> None:
    told = asked(tmp_path, ["a", "b"])
    listening = {f"{told[name]['bind']}:9100" for name in ("a", "b")}
    assert listening == {"10.0.0.1:9100", "10.0.0.2:9100"}
    for name in ("a", "b"):
        assert {node["address"] for node in told[name]["nodes"]} == listening
        assert told[name]["redis"] == ["10.0.0.1:9121"]


def test_the_samples_api_is_asked_itself(tmp_path: Path) -> None:
    told = asked(tmp_path, ["a"])["a"]
    assert (told["apis"], told["consoles"]) == (["127.0.0.1:8000", "10.0.0.2:8000"], [])
    assert "console" not in told["users"]


def test_of_another_application_the_console_is_asked_where_it_listens(tmp_path: Path) -> None:
    told = asked(tmp_path, ["a"], app={"app_release_source": str(tmp_path), "app_celery": "shop.jobs"})
    assert told["a"]["apis"] == []
    assert told["a"]["consoles"] == [f"{told['a']['console']}:8010", f"{told['b']['console']}:8010"]
    assert told["a"]["open"] == []
    assert told["b"]["open"] == [{"name": "console", "port": 8010, "from": ["10.0.0.1"]}]
    assert "console" in told["a"]["users"]
    assert told["a"]["passwords"] == [1, 1]


def test_without_an_api_the_console_is_beside_flower(tmp_path: Path) -> None:
    shop = {"app_release_source": str(tmp_path), "app_celery": "shop.jobs"}
    told = asked(tmp_path, ["a"], app=shop, members={"api": {}, "flower": {"hosts": {"b": {}}}})
    assert told["a"]["consoles"] == [f"{told['b']['console']}:8010"]
    assert told["b"]["open"] == [{"name": "console", "port": 8010, "from": ["10.0.0.1"]}]
    assert "console" in told["a"]["users"]


def test_the_consoles_password_changes_over_with_the_administrators(tmp_path: Path) -> None:
    rotated = {"previous_secrets": {"redis_password": "former"}}
    told = asked(tmp_path, ["a"], app={"app_release_source": str(tmp_path), "app_celery": "shop.jobs", **rotated})
    assert told["a"]["passwords"] == [2, 2]


def test_the_order_is_the_same_in_each_run(tmp_path: Path) -> None:
    # Two sets of eight names have the same order by chance once in 40,000 times.
    disabled = ["flushall", "flushdb", "keys", "debug", "shutdown", "monitor", "swapdb", "migrate", "restore"]
    app = {"app_redis_variables": {"CACHE_URL": "data"}, "redis_disabled_commands": disabled}
    for seed in ("1", "2"):
        told = asked(tmp_path, ["a"], "abcdefgh", app=app, PYTHONHASHSEED=seed)["a"]
        assert [node["host"] for node in told["nodes"]] == list("abcdefgh")
        assert told["disabled"] == [[command for command in disabled if command != "flushdb"]]


@pytest.mark.parametrize("inventory", ["sandbox", "single"])
def test_our_inventories_have_every_group(inventory: str) -> None:
    command = ["ansible-playbook", f"--inventory=inventories/{inventory}", "--list-hosts", "site.yml"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "Could not match" not in run.stdout + run.stderr
