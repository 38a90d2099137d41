"""What a failed run shows last: the cause, and no second error behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import REPOSITORY, ansible_report, load_plugin

service_unit = load_plugin("plugins/action/service_unit.py")
last_sentence = service_unit.last_sentence
NOTIFIED = {
    "celery_worker": ["Application changed", "Restart the workers with changed units"],
    "api": ["Application changed", "The API's units changed"],
    "flower": ["Settings changed", "Platform tools changed", "Restart Flower"],
    "console": ["Settings changed", "Platform tools changed", "Restart the console"],
}


@pytest.mark.parametrize("role", NOTIFIED)
@pytest.mark.parametrize("supervision", ["systemd", "supervisor"])
def test_handlers_add_no_error_to_that_of_a_run(role: str, supervision: str, tmp_path: Path) -> None:
    """The application's handlers run after a failure; nothing that later tasks register is there then."""
    folder = REPOSITORY / "roles" / role
    play: dict[str, Any] = {
        "hosts": "all",
        "connection": "local",
        "gather_facts": False,
        "force_handlers": True,
        "vars_files": [str(file) for part in ("defaults", "vars") for file in folder.glob(f"{part}/main.yml")],
        "vars": {
            "celery_worker_supervision": supervision,
            "ansible_facts": {"service_mgr": supervision, "processor_vcpus": 2},
            "app_name": "nothing-of-that-name",
        },
        "tasks": [
            {
                "name": "Change something",
                "ansible.builtin.command": "true",
                "changed_when": True,
                "notify": NOTIFIED[role],
            },
            {"name": "The cause", "ansible.builtin.fail": {"msg": "the cause"}},
        ],
        "handlers": [{"name": "Handlers", "ansible.builtin.import_tasks": str(folder / "handlers/main.yml")}],
    }
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump([play]))
    report = ansible_report("--inventory=host,", playbook)
    failed = [
        task["task"]["name"]
        for play in report["plays"]
        for task in play["tasks"]
        for result in task["hosts"].values()
        if result.get("failed")
    ]
    assert failed == ["The cause"]
    assert report["stats"]["host"]["failures"] == 1


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], ""),
        (["", "  "], ""),
        (
            ["one", "TASK_TIME_LIMIT=0 is refused: it must be more.", ""],
            "TASK_TIME_LIMIT=0 is refused: it must be more.",
        ),
        (['{"level": "INFO", "message": "ready."}'], "ready."),
        (['{"message": "it ended", "exception": "Traceback ...\\nValueError: the cause"}'], "ValueError: the cause"),
        (["the cause", '{"message": ""}'], "the cause"),
        (["{broken"], "{broken"),
        (["[1]"], "[1]"),
    ],
)
def test_a_unit_that_does_not_start_is_quoted(lines: list[str], sentence: str) -> None:
    assert last_sentence(lines) == sentence


AS_IT_SHOULD_BE = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no"}
STARTED = {"name": "unit", "state": "started", "enabled": True, "daemon_reload": True}


@pytest.mark.parametrize(
    ("arguments", "shown", "answer"),
    [
        ({}, {}, True),
        ({}, {"ActiveState": "inactive"}, False),
        ({}, {"ActiveState": "activating"}, False),
        ({}, {"UnitFileState": "disabled"}, False),
        ({}, {"NeedDaemonReload": "yes"}, False),
        ({}, {"LoadState": "masked"}, False),
        ({"state": "restarted"}, {}, False),
        ({"enabled": False}, {}, False),
        ({"masked": False}, {}, False),
    ],
)
def test_the_module_is_left_out_only_where_a_unit_is_as_the_task_wants_it(
    arguments: dict[str, Any], shown: dict[str, str], answer: bool
) -> None:
    lines = [f"{key}={value}" for key, value in (AS_IT_SHOULD_BE | shown).items()]
    assert service_unit.is_established(STARTED | arguments, lines) is answer
    assert not service_unit.is_established(STARTED | arguments, [])


def test_application_and_redis_are_started_by_the_action_that_quotes() -> None:
    for role in ("celery_worker", "api", "flower", "redis"):
        for file in (REPOSITORY / "roles" / role).glob("*/*.yml"):
            if file.parent.name not in ("tasks", "handlers"):
                continue
            for task in yaml.safe_load(file.read_text()):
                state = task.get("ansible.builtin.systemd_service", {}).get("state")
                assert state not in ("started", "restarted") or task.get("failed_when") is False, (
                    f"{file}: {task['name']}"
                )
