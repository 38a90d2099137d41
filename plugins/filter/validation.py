"""How roles validate values: a list of rules, of which the first broken one is the error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def first_broken_rule(rules: Iterable[Mapping[str, Any]]) -> str:
    """Return the ``message`` of the first rule that does not hold, or an empty string.

    A rule is ``{holds: bool, message: str}``. Ansible evaluates a value when it is read, so that a rule may rely on
    those before it, and a message on its rule being broken. For the module ``fail`` with ``when``: ``assert`` reads
    every value twice.
    """
    return next((str(rule["message"]) for rule in rules if not rule["holds"]), "")


class FilterModule:
    """Ansible's filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return them by name."""
        return {"first_broken_rule": first_broken_rule}
