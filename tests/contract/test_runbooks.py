"""Each alert has a page in docs/runbooks that says what it means and what to do, and each such page an alert.

Pages in lower case are procedures without an alert.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import REPOSITORY, load_plugin

doctor = load_plugin("roles/stack/filter_plugins/stack_doctor.py")

PAGES = REPOSITORY / "docs/runbooks"
ALERTS = REPOSITORY / "roles/monitoring/templates/alerts.yml.j2"
PLAYBOOKS = REPOSITORY / "playbooks/runbooks"
SECTIONS_OF_A_PROCEDURE = ["Diagnose", "Repair", "Verify"]
SECTIONS = [*SECTIONS_OF_A_PROCEDURE, "Threshold"]


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
        assert sections == (SECTIONS if page in pages() else SECTIONS_OF_A_PROCEDURE), page
        assert "**Meaning.** " in text, page
        assert "**Impact.** " in text, page
        assert "```bash" in text.partition("## Diagnose")[2].partition("## ")[0], page


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


def said(verdict: str, plan: str, *findings: dict[str, Any], confirm: bool = False) -> list[str]:
    """Return what a runbook says after it has looked."""
    lines: list[str] = doctor.runbook_lines(
        list(findings), verdict=verdict, plan=plan, pages=["NoWorkers"], confirm=confirm, evidence="evidence/x"
    )
    return lines


def finding(host: str, layer: int, runbook: str, **more: Any) -> dict[str, Any]:
    """Return something critical that the doctor has found."""
    return {
        "host": host,
        "layer": layer,
        "runbook": runbook,
        "severity": 1,
        "suspect": False,
        "what": "it is away",
        **more,
    }


def test_all_is_well_when_nothing_is_critical() -> None:
    assert said("", "", finding("w1", 8, "NoWorkers", severity=2)) == [
        "Nothing is critical, and there is nothing to repair here."
    ]


@pytest.mark.parametrize("layer", [0, 3, 8, 10])
@pytest.mark.parametrize("page", ["NoWorkers", "RedisDown"])
def test_nothing_is_called_well_beside_something_critical(layer: int, page: str) -> None:
    told = said("", "", finding("w1", layer, page))
    assert told[0].startswith("CRITICAL w1: it is away")
    assert ("I do not know the cause." in told) is (layer > 0)
    assert told[-1] == "This runbook repairs nothing here. The evidence is in evidence/x."
    assert not any("othing is critical" in line for line in told)


def test_who_does_not_know_names_the_three_likeliest_differences() -> None:
    differences = [finding("w1", 2, "drift", difference=True, what=f"number {number}") for number in range(5)]
    told = said("", "", *differences, finding("w1", 8, "NoWorkers"))
    begin = told.index("I do not know the cause; the likeliest differences:")
    assert told[begin + 1 :][:3] == [f"Differs from its healthy state: w1: number {number}" for number in range(3)]
    assert len(told) <= 10


def test_what_is_certain_is_known() -> None:
    assert "I do not know the cause." not in said("", "", finding("w1", 8, "NoWorkers", certain=True))


@pytest.mark.parametrize("confirm", [True, False])
def test_a_plan_stands_last_below_what_is_wrong_elsewhere(confirm: bool) -> None:
    others = [finding(f"h{number}", 3, "RedisDown") for number in range(20)]
    told = said("the worker is stopped", "start it", finding("w1", 8, "NoWorkers"), *others, confirm=confirm)
    assert told[0] == "the worker is stopped"
    assert told[1].startswith("Elsewhere: CRITICAL h0")
    assert told[-1] == ("Now: start it" if confirm else "Nothing was changed. With -e confirm=yes: start it")
    assert len(told) == 10
