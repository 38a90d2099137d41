"""Each alert has a page in docs/runbooks that says what it means and what to do, and each such page an alert.

Pages in lower case are procedures that no alert asks for.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader
from ansible.template import Templar

from tests.support import REPOSITORY

PAGES = REPOSITORY / "docs/runbooks"
ALERTS = REPOSITORY / "roles/monitoring/templates/alerts.yml.j2"
PLAYBOOKS = REPOSITORY / "playbooks/runbooks"
SECTIONS = ["Look", "Mend", "Verify", "Why this threshold"]
SECTIONS_OF_A_PROCEDURE = [["Look", "Mend", "Verify"], ["Look", "Do", "Verify"]]


def alerts() -> list[str]:
    """Return the names of all alerts."""
    return re.findall(r"- alert: (\w+)", ALERTS.read_text())


def pages() -> list[Path]:
    """Return the alerts' pages, without their list."""
    return sorted(page for page in PAGES.glob("[A-Z]*.md") if page.name != "README.md")


def procedures() -> list[Path]:
    """Return the pages that belong to no alert."""
    return sorted(PAGES.glob("[a-z]*.md"))


def test_each_alert_has_a_page_and_each_page_an_alert() -> None:
    assert sorted(alerts()) == [page.stem for page in pages()]
    assert len(alerts()) == ALERTS.read_text().count("runbook: {{ monitoring_runbooks }}/")


def test_each_alert_has_a_unit_test_in_which_it_fires() -> None:
    files = map(Path.read_text, (REPOSITORY / "molecule").glob("*/tests/alerts_test.yml"))
    rules = [rule for file in files for case in yaml.safe_load(file)["tests"] for rule in case["alert_rule_test"]]
    assert {rule["alertname"] for rule in rules if rule["exp_alerts"]} == set(alerts())


def test_every_alert_has_a_drill_or_a_reason() -> None:
    scenarios = [yaml.safe_load(file.read_text()) for file in (REPOSITORY / "molecule").glob("*/tests/drills.yml")]
    drilled = {alert for cases in scenarios for drill in cases["drills"] for alert in drill.get("alerts", [])}
    without = {alert for cases in scenarios for alert in cases["without"]}
    assert drilled | without == set(alerts())
    assert not drilled & without


def test_each_page_says_all_that_is_needed() -> None:
    for page in pages() + procedures():
        text = page.read_text()
        sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert sections in ([SECTIONS] if page in pages() else SECTIONS_OF_A_PROCEDURE), page
        assert "**Meaning.** " in text, page
        assert "**Impact.** " in text, page
        assert "```bash" in text.partition("## Look")[2].partition("## ")[0], page


def test_playbooks_that_pages_name_are_there() -> None:
    for page in PAGES.glob("*.md"):
        for playbook in re.findall(r"playbooks/runbooks/(\w+\.yml)", page.read_text()):
            assert (PLAYBOOKS / playbook).exists(), f"{page}: {playbook}"


def test_each_runbook_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES.glob("*.md"))
    for playbook in PLAYBOOKS.glob("*.yml"):
        assert f"playbooks/runbooks/{playbook.name}" in text, playbook


def test_the_list_names_every_page() -> None:
    listed = re.findall(r"^- \[([\w-]+)\]", (PAGES / "README.md").read_text(), re.MULTILINE)
    assert listed == [page.stem for page in pages() + procedures()]


def test_links_lead_somewhere() -> None:
    for page in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def said(verdict: str, plan: str, *findings: dict[str, Any]) -> list[str]:
    """Return what a runbook says after it has looked."""
    filter_loader.add_directory(str(REPOSITORY / "roles/stack/filter_plugins"))
    loader = DataLoader()
    task = loader.load_from_file(str(PLAYBOOKS / "tasks/verdict.yml"), trusted_as_template=True)[0]
    given = {
        "runbook_verdict": verdict,
        "runbook_plan": plan,
        "runbook_found": list(findings),
        "runbook_pages": ["NoWorkers"],
    }
    told: list[str] = Templar(loader=loader, variables={**task["vars"], **given}).template(
        task["ansible.builtin.debug"]["msg"]
    )
    return told


def finding(host: str, layer: int, runbook: str) -> dict[str, Any]:
    """Return something critical that the doctor has found."""
    return {"host": host, "layer": layer, "runbook": runbook, "severity": 1, "suspect": False, "what": "it is away"}


def test_a_verdict_says_of_whom_it_says_nothing() -> None:
    told = said("All workers are there.", "", finding("w1", 0, "TargetDown"))
    assert "Of w1 this says nothing: no answer from there." in told


@pytest.mark.parametrize(("plan", "is_told"), [("", True), ("start it", False)])
def test_what_the_doctor_sees_is_told_where_no_cause_is_found(plan: str, is_told: bool) -> None:
    told = said("All workers are there.", plan, finding("w1", 8, "NoWorkers"))
    assert any("The doctor says all the same: CRITICAL w1" in sentence for sentence in told) is is_told
