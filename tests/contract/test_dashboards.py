"""Grafana's dashboards: whole, readable, with the alerts' thresholds, and of metrics that exist.

The names of exporters' metrics are held against a running Prometheus by molecule/monitoring.
"""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from prometheus_client import CollectorRegistry

from app.api import prometheus
from app.api.tasks import ENQUEUED
from durable_console.web.prometheus import Snapshot, _Queue
from tests.support import REPOSITORY

GRAFANA = REPOSITORY / "deploy/grafana"
RUNBOOKS = REPOSITORY / "docs/runbooks"
MONITORING = REPOSITORY / "roles/monitoring"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
OURS = re.compile(r"\b(?:celery|http)_\w+")


def load(path: Path) -> dict[str, Any]:
    """Return a dashboard."""
    board: dict[str, Any] = json.loads(path.read_text())
    return board


BOARDS = {path.stem: load(path) for path in FILES}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]


@pytest.fixture(scope="module")
def our_metrics() -> set[str]:
    """The names that the API exports, taken from its own collectors."""
    registry = CollectorRegistry(auto_describe=True)
    for collector in (_Queue(Snapshot(up=True)), ENQUEUED, prometheus.REQUESTS, prometheus.SECONDS, prometheus.RUNNING):
        registry.register(collector)
    return {*registry._names_to_collectors}


@pytest.fixture(scope="module")
def alerts() -> dict[str, str]:
    """Name -> expression, with the role's defaults."""
    template = jinja2.Environment(autoescape=False).from_string((MONITORING / "templates/alerts.yml.j2").read_text())  # noqa: S701 - YAML
    rules = yaml.safe_load(template.render(yaml.safe_load((MONITORING / "defaults/main.yml").read_text())))
    return {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}


def test_there_are_four_that_lead_to_each_other() -> None:
    assert sorted(BOARDS) == ["platform", "queue", "redis", "worker"]
    assert {name: board["uid"] for name, board in BOARDS.items()} == {
        "platform": "platform-overview",
        "queue": "platform-queue",
        "redis": "platform-redis",
        "worker": "platform-worker",
    }
    for board in BOARDS.values():
        assert [link["tags"] for link in board["links"]] == [board["tags"]]


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_ids_and_places_of_their_own(name: str) -> None:
    panels = BOARDS[name]["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in panels]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        apart = any(
            first[at] + first[size] <= second[at]
            for first, second in ((one, other), (other, one))
            for at, size in (("x", "w"), ("y", "h"))
        )
        assert apart, (one, other)


@pytest.mark.parametrize("name", BOARDS)
def test_every_variable_is_declared_and_used(name: str) -> None:
    board = BOARDS[name]
    declared = {variable["name"] for variable in board["templating"]["list"]}
    text = json.dumps(board)
    assert set(re.findall(r"\$\{?([a-z]+)\b", text)) == declared
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["query"]["query"].startswith("label_values(")
            assert variable["allValue"] == ".*"


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_a_question_and_says_what_to_do(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert "?" in panel["description"]
    pages = re.findall(r"docs/runbooks/(\w+)\.md", panel["description"].replace("docs/runbooks/NAME.md", ""))
    assert pages or "No alert" in panel["description"]
    for page in pages:
        assert (RUNBOOKS / f"{page}.md").exists()
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    refs = [target["refId"] for target in panel["targets"]]
    assert len(refs) == len(set(refs))
    assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("panel", PANELS)
def test_thresholds_are_those_of_the_alerts(panel: dict[str, Any], alerts: dict[str, str]) -> None:
    thresholds = panel["fieldConfig"]["defaults"].get("thresholds")
    if thresholds is None:
        assert panel["type"] != "stat", "Grafana's own threshold for a figure is 80"
        return
    bounds = {step["value"] for step in thresholds["steps"]} - {None}
    pages = set(re.findall(r"docs/runbooks/(\w+)\.md", panel["description"]))
    limits = set()
    for page in pages & set(alerts):
        for number, factor in re.findall(r"(?:[<>=]=?) ([\d.]+)(?: \* ([\d.]+))?", alerts[page]):
            limits.add(round(float(number) * float(factor or 1), 6))
    # One is the first whole number that is not 0; numbers of alerts, workers and targets have no other limit.
    assert bounds <= limits | {1}


@pytest.mark.parametrize("name", BOARDS)
def test_our_metrics_are_exported(name: str, our_metrics: set[str]) -> None:
    asked = [target["expr"] for panel in BOARDS[name]["panels"] for target in panel.get("targets", [])]
    asked += [item["query"]["query"] for item in BOARDS[name]["templating"]["list"] if item["type"] == "query"]
    used = {metric for text in asked for metric in OURS.findall(re.sub(r'"[^"]*"', "", text))}
    assert used <= our_metrics


def test_the_known_metrics_are_what_a_scrape_shows(our_metrics: set[str]) -> None:
    assert {"celery_tasks_enqueued_total", "celery_task_run_seconds_bucket", "http_requests_total"} <= our_metrics
    assert "celery_tasks_finished_total" not in our_metrics


def test_no_password_is_in_the_datasource() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources.yml").read_text())["datasources"]
    assert source["secureJsonData"]["basicAuthPassword"].startswith("$__file{/")
    defaults = yaml.safe_load((MONITORING / "defaults/main.yml").read_text())
    assert source["basicAuthUser"] == defaults["monitoring_username"]
    assert source["url"] == f"http://{defaults['monitoring_bind']}:{defaults['monitoring_prometheus_port']}"
    assert source["jsonData"]["timeInterval"] == defaults["monitoring_scrape_interval"]
