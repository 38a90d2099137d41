"""What the pages point to is there."""

from __future__ import annotations

import datetime as dt
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

RECORDS = sorted((REPOSITORY / "docs/decisions").glob("[0-9]*.md"))
STATUS = re.compile(
    r"Status: (?P<status>accepted|accepted, amended by \d{4}(, \d{4})*( and \d{4})?|superseded by \d{4})"
    r" · Date: (?P<date>\d{4}-\d\d-\d\d)"
)
SECTIONS = ("Context", "Considered", "Decision", "Consequences", "Evidence")


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


def test_every_decision_is_once_in_their_list() -> None:
    listed = (REPOSITORY / "docs/decisions/README.md").read_text()
    assert re.findall(r"^\| \[\d{4}\]\((.+?)\)", listed, re.MULTILINE) == [record.name for record in RECORDS]


def faults_of_a_record(number: str, text: str) -> list[str]:
    """Return in what a decision's text differs from the form that their README states."""
    faults = []
    head, *rest = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    title, _, status = head.strip().partition("\n\n")
    if not re.fullmatch(rf"# {number} \S.*", title):
        faults.append(f"title {title!r}")
    # Numbers of other records may be links.
    line = STATUS.fullmatch(re.sub(r"\[(\d{4})\]\([^)]*\)", r"\1", status))
    if line is None:
        faults.append(f"status {status!r}")
    else:
        known = {record.name[:4] for record in RECORDS}
        later = re.findall(r"\d{4}", line["status"])
        faults += [f"changed by {other}" for other in later if other not in known or other <= number]
        try:
            dt.date.fromisoformat(line["date"])
        except ValueError:
            faults.append(f"date {line['date']!r}")
    sections, bodies = rest[::2], rest[1::2]
    optional = {"Considered", "Evidence"}
    if sections != [name for name in SECTIONS if name in sections or name not in optional]:
        faults.append(f"sections {sections}")
    faults += [f"nothing in {name}" for name, body in zip(sections, bodies, strict=True) if not body.strip()]
    return faults


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name[:4])
def test_every_decision_has_the_one_form(record: Path) -> None:
    assert faults_of_a_record(record.name[:4], record.read_text()) == []


RECORD = """# 0001 Title

Status: accepted, amended by [0002](0002-redis-configuration.md) · Date: 2026-11-22

## Context

a

## Decision

b

## Consequences

c
"""


@pytest.mark.parametrize(
    ("good", "bad", "fault"),
    [
        ("# 0001 ", "# 0001: ", "title"),
        ("# 0001 ", "# 0002 ", "title"),
        (RECORD.split("\n\n")[1] + "\n\n", "", "status"),
        ("accepted", "done", "status"),
        ("2026-11-22", "2026-11-22\n\nMore.", "status"),
        ("amended by", "like", "status"),
        ("[0002](0002-redis-configuration.md)", "0000", "changed by"),
        ("[0002](0002-redis-configuration.md)", "9999", "changed by"),
        ("2026-11-22", "2026-11-31", "date"),
        ("## Decision", "## Choice", "sections"),
        ("## Consequences\n\nc\n", "", "sections"),
        ("## Decision", "## Evidence\n\nd\n\n## Decision", "sections"),
        ("## Decision\n\nb", "## Decision", "nothing in"),
    ],
)
def test_a_decision_of_another_form_is_found(good: str, bad: str, fault: str) -> None:
    assert faults_of_a_record("0001", RECORD) == []
    assert good in RECORD
    assert [found.startswith(fault) for found in faults_of_a_record("0001", RECORD.replace(good, bad))] == [True]
