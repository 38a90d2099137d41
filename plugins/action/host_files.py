"""Ansible action: renders the templates of the module host_files, and keeps contents out of the host's journal."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader

# What a file's content may come from: the option, and the lookup that reads it.
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "template": ("ansible.builtin.template", {}),
    "src": ("ansible.builtin.file", {"rstrip": False}),
}


class ActionModule(ActionBase):
    """Renders on the controller, then runs the module."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        variables = dict(task_vars or {})
        result: dict[str, Any] = super().run(tmp, variables)
        arguments = dict(self._task.args)
        arguments["files"] = [self._with_content(file, variables) for file in arguments.get("files", [])]
        # A module logs its arguments, here whole files.
        variables["ansible_no_target_syslog"] = True
        result |= self._execute_module("host_files", arguments, task_vars=variables)
        return result

    def _with_content(self, file: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        for source, (plugin, options) in SOURCES.items():
            if source in file:
                lookup = lookup_loader.get(plugin, loader=self._loader, templar=self._templar)
                content = lookup.run([file[source]], variables | file.get("vars", {}), **options)[0]
                return {key: value for key, value in file.items() if key not in (source, "vars")} | {"content": content}
        return file
