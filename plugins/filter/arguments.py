"""Filter for playbooks/tasks/validate_arguments.yml: what is wrong with the arguments that a verb was called with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError


def wrong_argument(values: Mapping[str, Any], arguments: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence about the first argument with a wrong value, or nothing.

    Args:
        values: the arguments that were given.
        arguments: those that there are: ``name``, and ``choices``, or ``pattern`` and what it ``says`` in words, or
            ``flag`` for yes and no; ``required``; ``several`` for values with commas between them.
    """
    for argument in arguments:
        name, required = argument["name"], argument.get("required", False)
        if argument.get("flag"):
            pattern, says = "(?i:yes|no|true|false)", "yes or no"
        elif "choices" in argument:
            choices = [str(choice) for choice in argument["choices"]]
            pattern, says = "|".join(map(re.escape, choices)), "one of " + ", ".join(choices)
        elif "pattern" in argument:
            pattern, says = argument["pattern"], argument["says"]
        else:
            raise AnsibleFilterError(f"The argument {name} has no choices, no pattern and is no flag.")
        if name not in values and not required:
            continue
        value = str(values.get(name, ""))
        parts = value.split(",") if argument.get("several") else [value]
        if not all(re.fullmatch(pattern, part) for part in parts):
            left_out = "" if required else ", or left out"
            return f"{name} is {value!r}, but it must be {says}{left_out}: write -e {name}=VALUE."
    return ""


class FilterModule:
    """Ansible's filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {"wrong_argument": wrong_argument}
