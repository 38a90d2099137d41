"""Prometheus and Alertmanager, and what they alone see."""

import json
from collections.abc import Iterator
from typing import Any

from hosttools import web
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, LATER, NOTE, QUEUES, WARNING, Finding
from hosttools.masking import quote

# Of these only figures of several minutes tell.
ONLY_ALERTS = "ApiErrors ApiSlow EventLoopBlocked TasksFail TasksRetry TasksTimeOut WorkerRestartLoop"


def check(prometheus: str, alertmanager: str) -> Iterator[Finding]:
    """Ask Prometheus for its rules and whom it does not reach, and Alertmanager what we do not see ourselves."""
    headers = web.prometheus_login()
    status, body = web.ask(f"{prometheus}/api/v1/targets?state=active", headers)
    password = "; it refuses the password of /etc/prometheus/secrets/password" if status == 401 else ""
    if status != 200:
        what = f"Prometheus does not answer at {prometheus} ({web.words(status, body)}{password})"
        yield Finding(CRITICAL, what, "Watchdog", LATER)
    else:
        yield from watched(prometheus, headers)
        for target in json.loads(body)["data"]["activeTargets"]:
            if target["health"] == "down":
                labels = target["labels"]
                what = f"Prometheus does not get figures from {labels['job']} on {labels['host']}: "
                yield Finding(WARNING, what + quote(target["lastError"]), "TargetDown", LATER)
    yield from alerts(alertmanager, headers)


@apart
def watched(prometheus: str, headers: dict[str, str]) -> Iterator[Finding]:
    """Look whether Prometheus has rules that it can evaluate, and somebody to tell."""
    found = _json(f"{prometheus}/api/v1/alertmanagers", headers)
    if found and not found["data"]["activeAlertmanagers"]:
        yield Finding(CRITICAL, "Prometheus has no Alertmanager to tell of alerts", "Watchdog", LATER)
    rules = _json(f"{prometheus}/api/v1/rules?type=alert", headers)
    named = [rule for group in rules["data"]["groups"] for rule in group["rules"]] if rules else []
    if rules and not named:
        yield Finding(CRITICAL, "Prometheus has no rule for any alert: nothing can fire", "Watchdog", LATER)
    for rule in named:
        if rule.get("health") == "err":
            what = f"Prometheus cannot evaluate the alert {rule['name']}: {quote(rule.get('lastError', ''))}"
            yield Finding(CRITICAL, what, "Watchdog", LATER)


def _json(url: str, headers: dict[str, str]) -> Any:
    status, body = web.ask(url, headers)
    return json.loads(body) if status == 200 else None


@apart
def alerts(alertmanager: str, headers: dict[str, str]) -> Iterator[Finding]:
    """Ask Alertmanager what it shows that we do not see ourselves, and what it is silent about."""
    status, body = web.ask(f"{alertmanager}/api/v2/alerts?active=true", headers)
    if status != 200:
        what = f"Alertmanager does not answer at {alertmanager} ({web.words(status, body)})"
        yield Finding(CRITICAL, what, "Watchdog", LATER)
    fire = {alert["labels"]["alertname"]: alert for alert in json.loads(body)} if status == 200 else {}
    for name in sorted(fire.keys() & set(ONLY_ALERTS.split())):
        # Without a page of its own: it fires for minutes after a runbook of that page has repaired it.
        what = f"{fire[name]['annotations'].get('summary', '')} (docs/runbooks/{name}.md)"
        yield Finding(WARNING, what, "", QUEUES)
    if names := sorted(fire.keys() - {"Watchdog", *ONLY_ALERTS.split()}):
        yield Finding(NOTE, f"alerts that fire: {', '.join(names)}", "", LATER)
    for silence in _json(f"{alertmanager}/api/v2/silences", headers) or []:
        if silence["status"]["state"] == "active":
            which = ", ".join(f"{matcher['name']}={matcher['value']}" for matcher in silence["matchers"])
            what = f"nobody is told of alerts with {which} until {silence['endsAt'][:16]} UTC: {silence['comment']}"
            yield Finding(WARNING, quote(what), "planned-maintenance", LATER)
