"""The rules by which roles validate values."""

import runpy
from collections.abc import Callable
from typing import Any

from tests.support import REPOSITORY

first_broken_rule: Callable[[Any], str] = runpy.run_path(str(REPOSITORY / "plugins/filter/validation.py"))[
    "first_broken_rule"
]


class Unreadable(dict[str, Any]):
    """A rule that may not be evaluated."""

    def __getitem__(self, key: str) -> Any:
        """Fail the test."""
        raise AssertionError(key)


class Holding(dict[str, Any]):
    """A rule that holds, and whose message may not be evaluated."""

    def __getitem__(self, key: str) -> Any:
        """Answer the one question that is allowed."""
        assert key == "holds"
        return True


def test_the_first_broken_rule_is_the_error() -> None:
    assert first_broken_rule([Holding(), {"holds": False, "message": "x is 0"}, Unreadable()]) == "x is 0"


def test_no_broken_rule_is_no_error() -> None:
    assert first_broken_rule([Holding(), Holding()]) == ""
    assert first_broken_rule([]) == ""
