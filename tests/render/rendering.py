"""Renders templates with many sets of variables in one run of Ansible."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.support import REPOSITORY, ansible_report

HERE = Path(__file__).parent


def render(playbook: str, variants: dict[str, dict[str, Any]], directory: Path) -> dict[str, Path]:
    """Render what the playbook renders once for each variant; return the folders in which its files are."""
    hosts = {}
    for name, variables in variants.items():
        (directory / name).mkdir()
        (file := directory / f"{name}.json").write_text(json.dumps(variables))
        hosts[name] = {"variables": str(file)}
    inventory = directory / "hosts.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    folders = (
        "plugins/filter",
        "roles/stack/filter_plugins",
        "roles/redis/filter_plugins",
        "roles/firewall/filter_plugins",
    )
    plugins = os.pathsep.join(str(REPOSITORY / folder) for folder in folders)
    report = ansible_report(f"--inventory={inventory}", HERE / playbook, ANSIBLE_FILTER_PLUGINS=plugins)
    assert not any(host["failures"] for host in report["stats"].values()), json.dumps(report)[-4000:]
    for play in report["plays"]:
        for task in play["tasks"]:
            for name, outcome in task["hosts"].items():
                for each in outcome.get("results", [outcome]):
                    if "msg" in each:
                        file = directory / name / each["msg"]["file"]
                        file.parent.mkdir(exist_ok=True)
                        file.write_text(each["msg"]["text"])
    return {name: directory / name for name in variants}
