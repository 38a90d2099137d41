"""A line break in an expression is one: outside of double quotes Ansible takes it for a backslash and a letter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.support import REPOSITORY

FILES = [
    path
    for folder in ("roles", "playbooks", "molecule", "inventories")
    for path in (REPOSITORY / folder).rglob("*.yml")
]
# Regular expressions know both.
TEXT = re.compile(r"\b(join|split|replace)\b[^)|}]*'[^']*\\n|~ '[^']*\\n[^']*'")


class Loader(yaml.SafeLoader):
    """Reads Ansible's files, whose tags it leaves alone."""


Loader.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_scalar(node))


def scalars(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from (text for each in pair for text in scalars(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in scalars(each))


def wrong(document: str) -> list[str]:
    return [text for text in scalars(list(yaml.load_all(document, Loader))) if "{{" in text and TEXT.search(text)]


def test_a_line_break_that_is_none_is_found() -> None:
    assert wrong("a: >-\n  {{ b | join('\\n') }}\n")
    assert wrong("a: >-\n  {{ b ~ '\\n' }}\n")
    assert wrong("a: >-\n  {{ b | map('split', '\\n') }}\n")
    assert not wrong("a: >-\n  {{ b is search('\\n') }}\n")
    assert not wrong("a: \"{{ b | join('\\n') }}\"\n")


def test_no_expression_has_one() -> None:
    found = {str(path.relative_to(REPOSITORY)): wrong(path.read_text()) for path in FILES}
    assert {path: texts for path, texts in found.items() if texts} == {}
