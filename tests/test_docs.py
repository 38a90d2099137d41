"""What the pages point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import REPOSITORY

PAGES = [
    page
    for page in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("packages/*/*.md"))
    if page.is_file()
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_of_the_shelves_is_in_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    shelves = [
        page
        for name in ("start", "operations", "reference", "reports")
        for page in (REPOSITORY / "docs" / name).glob("*.md")
    ]
    assert [str(page) for page in shelves if str(page.relative_to(REPOSITORY)) not in readme] == []


def test_every_decision_is_in_their_list() -> None:
    listed = (REPOSITORY / "docs/decisions/README.md").read_text()
    records = (REPOSITORY / "docs/decisions").glob("[0-9]*.md")
    assert [record.name for record in records if record.name not in listed] == []
