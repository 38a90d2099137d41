"""Each alert has a page in docs/runbooks that says what it means and what to do, and each page an alert."""

import re
from pathlib import Path

from tests.support import REPOSITORY

PAGES = REPOSITORY / "docs/runbooks"
ALERTS = REPOSITORY / "roles/monitoring/templates/alerts.yml.j2"
SECTIONS = ["Look", "Mend", "Verify", "Why this threshold"]


def alerts() -> list[str]:
    """Return the names of all alerts."""
    return re.findall(r"- alert: (\w+)", ALERTS.read_text())


def pages() -> list[Path]:
    """Return the pages, without their list."""
    return sorted(page for page in PAGES.glob("*.md") if page.name != "README.md")


def test_each_alert_has_a_page_and_each_page_an_alert() -> None:
    assert sorted(alerts()) == [page.stem for page in pages()]
    assert len(alerts()) == ALERTS.read_text().count("runbook: {{ monitoring_runbooks }}/")


def test_each_page_says_all_that_is_needed() -> None:
    for page in pages():
        text = page.read_text()
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS, page
        assert "**Meaning.** " in text, page
        assert "**Impact.** " in text, page
        assert "```bash" in text.partition("## Look")[2].partition("## Mend")[0], page


def test_links_lead_somewhere() -> None:
    for page in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
