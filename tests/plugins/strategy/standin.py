"""Every task of a playbook, without a host: modules are not run, and what Ansible would show of them is shown.

Conditions hold, errors are passed over, ``rescue`` comes like ``always``, nothing is waited for: what is printed is
what any run could print. A module's arguments are shown as the module itself would show them, and the environment of a
task as a connection shows it, which is in the command line.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from ansible.playbook.block import Block
from ansible.playbook.task import Task
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import module_loader
from ansible.utils.display import Display
from inline import StrategyModule as Inline  # type: ignore[import-not-found] # beside this file

DOCUMENTATION = """
name: standin
short_description: Runs tasks without a host
description: As inline does, and no module is run.
"""
# An option's name before its description, which says that it is not to be logged.
NO_LOG = re.compile(r"""["']?(\w+)["']?\s*[=:]\s*(?:dict\(|\{)[^(){}]*?["']?no_log["']?\s*[=:]\s*True""")
FACTS = {
    "default_ipv4": {"address": "10.0.0.1", "interface": "eth0"},
    "all_ipv4_addresses": ["10.0.0.1"],
    "all_ipv6_addresses": [],
    "interfaces": ["lo", "eth0"],
    "distribution": "Debian",
    "distribution_major_version": "13",
    "distribution_release": "trixie",
    "architecture": "x86_64",
    "memtotal_mb": 4096,
    "processor_vcpus": 2,
    "pkg_mgr": "apt",
    "service_mgr": "systemd",
    "python": {"version": {"major": 3, "minor": 13}, "executable": "/usr/bin/python3"},
    "python_version": "3.13.5",
    "virtualization_role": "guest",
    "virtualization_type": "podman",
    "hostname": "one",
    "nodename": "one",
}
# What the tasks after a module read from its answer: something of each, so that they come to their own arguments.
TEXT = '{"id": "1", "archive": "/x", "version": "v=8.0.2", "instance": "main", "host": "one"}'
FILE = {"path": "/x", "mtime": 0, "lnk_source": "/x", "exists": True, "isreg": True, "islnk": True, "checksum": "x"}
ANSWER: dict[str, Any] = {
    "changed": True,
    "rc": 0,
    "status": 200,
    "stdout": TEXT,
    "stdout_lines": [TEXT],
    "stderr": "",
    "stderr_lines": [],
    "stat": FILE,
    "files": [FILE],
    "path": "/x",
    "changed_paths": ["/x"],
    "checksum": "x",
    "content": "eA==",
    "csr": "x",
    "certificate": "x",
    "privatekey": "x",
    "json": {},
    "restart_required": True,
    "stop_required": True,
}
own_value = Task._get_parent_attribute
display = Display()


@cache
def hidden(module: str) -> set[str]:
    """Return the options that a module does not log."""
    path = module_loader.find_plugin(module)
    return set(NO_LOG.findall(Path(path).read_text())) if path else set()


def run_module(
    action: Any, module_name: str | None = None, module_args: dict[str, Any] | None = None, **_: Any
) -> dict[str, Any]:
    """Take the place of ActionBase._execute_module."""
    name = module_name or action._task.action
    arguments = dict(action._task.args if module_args is None else module_args)
    display.vvv(f"EXEC {action._compute_environment_string()} python3 {name}")
    shown = {
        option: "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER" if option in hidden(name) else value
        for option, value in arguments.items()
    }
    facts = {"ansible_facts": FACTS} if name.rpartition(".")[2] == "setup" else {}
    return {**ANSWER, "invocation": {"module_args": shown}, **facts}


def parents_value(task: Any, attribute: str, omit: bool = False) -> Any:
    """Take the place of Task._get_parent_attribute: no condition."""
    return [] if attribute == "when" else own_value(task, attribute, omit)


def always(block: Any) -> None:
    """Let what repairs come in any case."""
    for entry in [*block.block, *block.rescue, *block.always]:
        if isinstance(entry, Block):
            always(entry)
    block.always, block.rescue = [*block.rescue, *block.always], []


def loaded(block: Any, data: Any, *arguments: Any, _load: Any = Block.load_data, **options: Any) -> Any:
    """Take the place of Block.load_data, for what is included later."""
    block = _load(block, data, *arguments, **options)
    always(block)
    return block


ActionBase._execute_module = run_module
ActionBase._low_level_execute_command = lambda *_, **__: {"rc": 0, "stdout": "", "stdout_lines": [], "stderr": ""}
ActionBase._make_tmp_path = lambda *_, **__: "/tmp/standin"  # noqa: S108 - nothing is written there
ActionBase._remove_tmp_path = lambda *_, **__: None
ActionBase._transfer_file = lambda _, __, remote: remote
ActionBase._transfer_data = lambda _, remote, __: remote
ActionBase._fixup_perms2 = lambda *_, **__: []
ActionBase._remote_expand_user = lambda _, path, **__: path
ActionBase._execute_remote_stat = lambda *_, **__: {"exists": False}
Task._get_parent_attribute = parents_value
Block.load_data = loaded


class StrategyModule(Inline):  # type: ignore[misc] # Ansible has no types
    """The inline strategy, without hosts."""

    def run(self, iterator: Any, play_context: Any) -> Any:
        """Run a play, which was loaded before this plugin."""
        for block in iterator._blocks:
            always(block)
        return super().run(iterator, play_context)

    def _queue_task(self, host: Any, task: Any, task_vars: dict[str, Any], play_context: Any) -> None:
        if task.action.rpartition(".")[2] in ("pause", "wait_for_connection"):
            task.action, task.args = "ansible.builtin.debug", {}
        task.ignore_errors, task.until, task.retries, task.any_errors_fatal = True, [], None, False
        if not task.action.rpartition(".")[2].startswith(("include_", "import_")):
            task.failed_when = task.failed_when or []
        super()._queue_task(host, task, task_vars, play_context)

    def _execute_meta(self, task: Any, *arguments: Any, **options: Any) -> Any:
        if task.args.get("_raw_params", "").startswith("end_"):
            return []
        return super()._execute_meta(task, *arguments, **options)
