"""Task names and pages use the field's terms, which an engineer searches for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import REPOSITORY

# Directories with tasks and handlers, and pages.
TASKS = ["roles"]
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs"]

# Decision records, and the page that is made from the roles' argument_specs, have longer sentences.
SHELVES = ["start", "operations", "reference", "runbooks"]
LONGEST_SENTENCE = 25

# Each with the term to use instead.
DIALECT = {
    r"mend(s|ed|ing)?": "repair",
    r"strangers?": "unexpected clients",
    r"upkeep": "maintenance",
    r"floating address(es)?": "virtual IP",
    r"leftovers?": "clean-up",
    r"(former|earlier) (api|data|flower|key|one|password|primary|release|secret|server|value)s?": "previous",
    r"takes? themselves for": "split brain",
    r"signs? of life": "heartbeat",
    r"in (its|their|a worker's|that worker's) hands": "in flight",
    r"refuses? (to write|writes)": "read-only",
    r"(buries|bury|buried)": "dead-letter",
    r"patience": "timeout",
    r"believ(e|es|ed)": "trust",
    r"(tell|say)s? (what|when|where|whether|which|who|why)": "report",
    r"what is (told|asked|said|shown|wrong)": "the thing itself",
    r"nobody gets in": "security",
    r"our way": "configure",
    r"(for )?want of": "a lack of",
    r"(there|that) (is|are) none": "what there is",
    r"by half": "a number",
    r"shall": "must",
    r"no more(?=[.:;])": "no longer",
}
WORDS = {re.compile(rf"\b(?:{words})\b", re.IGNORECASE): term for words, term in DIALECT.items()}
# A name is a verb of the field and its object.
VAGUE_NAME = re.compile(r"^(Ask|Give|Keep|Let|Look|Make|Put|Refuse|Say|Take|Tell|Try)\b|\b(it|its|them|they|ours?)$")
CODE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)


def dialect(text: str) -> list[str]:
    """Return the phrases of a text that an engineer does not search for, each with the term to use."""
    return [f"{found[0]!r}: {term}" for pattern, term in WORDS.items() for found in pattern.finditer(text)]


def names(tasks: Any) -> Iterator[str]:
    """Return the names of tasks or handlers, those within blocks too."""
    for task in tasks or []:
        yield task.get("name", "")
        for part in ("block", "rescue", "always"):
            yield from names(task.get(part))


def pages() -> list[Path]:
    """Return the pages that people write; docs/reports is written by measurements."""
    found = [page for name in PAGES for page in [REPOSITORY / name, *(REPOSITORY / name).rglob("*.md")]]
    return [page for page in found if page.is_file() and page.parent.name != "reports"]


def task_files() -> list[Path]:
    """Return the files of tasks and handlers."""
    files = [file for name in TASKS for file in (REPOSITORY / name).rglob("*.yml")]
    return [file for file in files if file.parent.name in {"tasks", "handlers"}]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_page_uses_the_fields_terms(page: Path) -> None:
    assert dialect(" ".join(CODE.sub(" ", page.read_text()).split())) == []


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in pages()
        if (page.parent == REPOSITORY or page.parent.name in SHELVES) and page.name != "variables.md"
    ],
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_a_sentence_is_short(page: Path) -> None:
    """A colon or semicolon ends a sentence, and code is one word; cells of tables are no sentences."""
    lines = re.sub(r"^\|.*$", "", CODE.sub("code", page.read_text()), flags=re.MULTILINE)
    paragraphs = re.split(r"\n\n|\n *(?=- |\d+\. )", lines)
    sentences = [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.:;?!])\s", paragraph)]
    assert [sentence for sentence in sentences if len(sentence.split()) > LONGEST_SENTENCE] == []


@pytest.mark.parametrize("file", task_files(), ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_a_task_is_named_by_action_and_object(file: Path) -> None:
    found = [*names(yaml.safe_load(file.read_text()))]
    assert [name for name in found if VAGUE_NAME.search(name) or dialect(name)] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It mends the former key.", 2),
        ("A floating\naddress for strangers", 2),
        ("It is away no more.", 1),
        ("No more than three.", 0),
        ("The previous release replaces a virtual IP.", 0),
    ],
)
def test_dialect_is_found(text: str, count: int) -> None:
    assert len(dialect(" ".join(text.split()))) == count
