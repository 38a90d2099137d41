"""Ansible's own linear strategy in one process: what the tests run is templates and assertions.

A process for each task of each host, and reading and compiling the same files for each, cost ten times as much as the
tasks. Everything else is Ansible's: inventories, variables, roles, loops, modules.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

from ansible._internal._task import TaskContext
from ansible._internal._templating import _jinja_bits
from ansible._internal._templating._jinja_bits import AnsibleEnvironment, _TemplateCompileContext
from ansible._internal._templating._jinja_common import TemplateContext
from ansible._internal._templating._lazy_containers import _AnsibleLazyTemplateMixin
from ansible.executor.task_executor import TaskExecutor
from ansible.executor.task_result import _RawTaskResult
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins import loader
from ansible.plugins.strategy.linear import StrategyModule as Linear
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

DOCUMENTATION = """
name: inline
short_description: Runs tasks in Ansible's own process
description: As linear does, one host after the other and without forks.
"""
load_from_file = DataLoader.load_from_file
compile_template = AnsibleEnvironment.compile
new_context = _jinja_bits._new_context
get_hostvars = HostVars.__getitem__
hostvars: dict[tuple[str, Any], Any] = {}
codes: dict[tuple[Any, ...], CodeType] = {}


def load_once(loader: DataLoader, file_name: str, cache: str = "all", **options: Any) -> Any:
    """Keep what was read; Ansible reads vars_files again for every task of every host."""
    return load_from_file(loader, file_name, cache="all" if cache == "vaulted" else cache, **options)


def compile_once(environment: AnsibleEnvironment, source: Any, *arguments: Any, **options: Any) -> Any:
    """Keep the code of a template; every host has the same."""
    if not isinstance(source, str):  # an expression's syntax tree
        return compile_template(environment, source, *arguments, **options)
    context = _TemplateCompileContext.current(optional=True)  # none for what a template imports
    escape = context and context.escape_backslashes
    whitespace = (environment.trim_blocks, environment.lstrip_blocks, environment.keep_trailing_newline)
    key = (str(source), escape, whitespace, environment.variable_start_string, arguments, *sorted(options.items()))
    if key not in codes:
        codes[key] = compile_template(environment, source, *arguments, **options)
    return codes[key]


def new_context_once(*, jinja_vars: Any = None, **options: Any) -> Any:
    """Let the templates of a task share what was rendered; Ansible renders a variable again wherever one names it."""
    engine = TemplateContext.current().templar
    if jinja_vars is engine._variables and type(jinja_vars) is dict:
        before, lazy = getattr(engine, "rendered", (None, None))
        # A loop sets its item; a copy of an engine has what the first has rendered.
        if lazy is None or lazy._templar is not engine or before != jinja_vars:
            lazy = _AnsibleLazyTemplateMixin._try_create(jinja_vars)
            engine.rendered = (jinja_vars.copy(), lazy)
        jinja_vars = lazy
    return new_context(jinja_vars=jinja_vars, **options)


def hostvars_once(self: HostVars, host: str) -> Any:
    """Keep a host's variables, as others see them, until one changes."""
    context = TemplateContext.current(optional=True)
    key = host, context and context.templar.marker_behavior
    if key not in hostvars:
        hostvars[key] = get_hostvars(self, host)
    return hostvars[key]


def changes_hostvars(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method that changes variables of a host."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        hostvars.clear()
        return method(*arguments, **options)

    return wrapped


DataLoader.load_from_file = load_once
AnsibleEnvironment.compile = compile_once
_jinja_bits._new_context = new_context_once
HostVars.__getitem__ = hostvars_once
for changing in ("set_host_facts", "set_nonpersistent_facts", "set_host_variable", "clear_facts"):
    setattr(VariableManager, changing, changes_hostvars(getattr(VariableManager, changing)))
InventoryManager.reconcile_inventory = changes_hostvars(InventoryManager.reconcile_inventory)


class StrategyModule(Linear):  # type: ignore[misc] # Ansible has no types
    """The linear strategy, in one process."""

    def _queue_task(self, host: Any, task: Any, task_vars: dict[str, Any], play_context: Any) -> None:
        """Run the task now, on a copy, as a process of its own would have one; its result goes the usual way."""
        self._queued_task_cache[host.name, task._uuid] = {
            "host": host,
            "task": task,
            "task_vars": task_vars,
            "play_context": play_context,
        }
        own = task.copy(exclude_parent=True)
        own._parent = task._parent
        self._tqm.send_callback("v2_runner_on_start", host, task)
        self._pending_results += 1
        plugins = loader.get_plugin_loader_namespace()
        objects = (self._loader, plugins, self._final_q, self._variable_manager)
        with TaskContext(own):
            data = TaskExecutor(host, own, task_vars.copy(), play_context, *objects).run()
        result = _RawTaskResult(host=host, task=own, return_data=data, task_fields=own.dump_attrs())
        self._final_q.send_task_result(result)
