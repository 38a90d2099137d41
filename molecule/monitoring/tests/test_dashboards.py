"""What Grafana's dashboards ask, a running Prometheus can answer; the rest is in tests/contract/test_dashboards.py."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import pytest
from conftest import PROJECT, ask, assert_seen, metrics
from testinfra.host import Host

pytestmark = [pytest.mark.timeout(300), pytest.mark.hosts("monitoring-main")]

BOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((PROJECT / "deploy/grafana/dashboards").glob("*.json"))
}


def filled_in(text: str) -> str:
    """Return an expression as Grafana sends it when all is chosen."""
    return re.sub(r"\$\w+", ".*", text.replace("$__rate_interval", "1m"))


def expressions(name: str) -> list[str]:
    """Return what a dashboard asks."""
    return [filled_in(target["expr"]) for panel in BOARDS[name]["panels"] for target in panel.get("targets", [])]


def test_every_metric_of_a_dashboard_exists(host: Host) -> None:
    wanted = {name for board in BOARDS for text in expressions(board) for name in metrics(text)}
    assert len(wanted) >= 50
    assert_seen(host, {"ALERTS", *wanted})


@pytest.mark.parametrize("board", BOARDS)
def test_prometheus_accepts_every_expression(host: Host, board: str) -> None:
    for text in expressions(board):
        ask(host, f"query?query={quote(text)}")


@pytest.mark.parametrize("board", BOARDS)
def test_every_variable_has_something_to_choose(host: Host, board: str) -> None:
    queries = [item["query"]["query"] for item in BOARDS[board]["templating"]["list"] if item["type"] == "query"]
    assert queries
    for query in queries:
        ((selector, label),) = re.findall(r"^label_values\((.+), (\w+)\)$", query)
        series = ask(host, f"series?match[]={quote(filled_in(selector))}")
        assert {labels.get(label) for labels in series} - {None}, query
