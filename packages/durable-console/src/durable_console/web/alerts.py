"""What Alertmanager tells of alerts: kept in the broker, where each process finds it for the status page.

Alertmanager tells a whole group at a time, all that fires of it and what does so no more, and repeats what fires every
five minutes (roles/monitoring): a group that it repeats no more is forgotten.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from redis.asyncio import Redis

from celery_durable import entries
from celery_durable.entries import HEARD
from celery_durable.keys import ALERTS
from durable_console.web.body import read_json
from durable_console.web.errors import documented
from durable_console.web.security import MetricsRoute

logger = logging.getLogger(__name__)

# It fires always, so it is a heartbeat.
WATCHDOG = "Watchdog"
# Seconds after which a group counts as forgotten, and all that was said when nothing more is heard.
GROUP_KEPT = 15 * 60
ALL_KEPT = 7 * 24 * 3600
MAX_GROUPS = 200
# Alertmanager's max_alerts, for a group (roles/monitoring).
MAX_ALERTS = 50
# Characters that are kept of each text.
LONGEST_TEXT = 300

Text = Annotated[str, Field(max_length=4096)]
Texts = Annotated[dict[str, Text], Field(max_length=64)]


class Alert(BaseModel):
    """One alert of a notification."""

    status: Literal["firing", "resolved"]
    labels: Texts
    annotations: Annotated[dict[str, str], Field(max_length=64)] = {}  # of any length: what is kept of them is cut
    startsAt: Text = ""  # noqa: N815 - Alertmanager's name


class Notification(BaseModel):
    """What Alertmanager sends to a webhook, as far as it matters here."""

    groupKey: Text  # noqa: N815 - Alertmanager's name
    alerts: Annotated[list[Alert], Field(max_length=MAX_ALERTS)]


@dataclass(frozen=True)
class Firing:
    """An alert that fires, for the page."""

    name: str
    host: str
    severity: str
    summary: str
    runbook: str
    since: float | None  # seconds since 1970


def _schema() -> dict[str, Any]:
    schema = Notification.model_json_schema()
    schema["properties"]["alerts"]["items"] = schema.pop("$defs")["Alert"]  # OpenAPI knows no $defs
    return schema


router = APIRouter(prefix="/status", tags=["status"], route_class=MetricsRoute, responses=documented(401, 429))


@router.post(
    "/alerts",
    status_code=204,
    responses=documented(408, 413, 415, 422, 503),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _schema()}}}},
)
async def take_alerts(request: Request) -> None:
    """Take what Alertmanager says of a group of alerts, for the status page."""
    notification = await read_json(request, request.app.state.max_body_bytes, Notification)
    await _remember(request.app.state.broker, notification)


async def _remember(broker: Redis, notification: Notification) -> None:
    questions = broker.pipeline(transaction=False)
    questions.time()
    questions.hgetall(ALERTS)
    (now, _), stored = await questions.execute()
    firing = [alert for alert in notification.alerts if alert.status == "firing"]
    shown = [_shown(alert) for alert in firing if alert.labels.get("alertname") != WATCHDOG]
    group = hashlib.sha256(notification.groupKey.encode("utf-8", "replace")).hexdigest()
    groups, _ = entries.alerts(stored)
    others = {name: group_of["told"] for name, group_of in groups.items() if name not in {HEARD.decode(), group}}
    over = [name for name, told in others.items() if now - told > GROUP_KEPT]
    changes = broker.pipeline(transaction=True)
    if len(shown) < len(firing):
        changes.hset(ALERTS, HEARD, now)
    if shown and len(others) - len(over) < MAX_GROUPS:
        changes.hset(ALERTS, group, json.dumps({"told": now, "alerts": shown}))
    else:
        over.append(group)
        if shown:
            logger.warning("The status page shows %d groups of alerts already, and not one more", MAX_GROUPS)
    if over:
        changes.hdel(ALERTS, *over)
    changes.expire(ALERTS, ALL_KEPT)
    await changes.execute()


def _shown(alert: Alert) -> dict[str, Any]:
    try:
        since = datetime.fromisoformat(alert.startsAt).timestamp()
    except (ValueError, OverflowError):
        since = None
    texts = {
        "name": alert.labels.get("alertname", "alert without a name"),
        "host": alert.labels.get("host", ""),
        "severity": alert.labels.get("severity", ""),
        "summary": alert.annotations.get("summary", ""),
        "runbook": alert.annotations.get("runbook", ""),
    }
    return {**{name: text[:LONGEST_TEXT] for name, text in texts.items()}, "since": since}


def heard(groups: dict[str, dict[str, Any]], now: int) -> float | None:
    """Return the seconds since the watchdog was heard, None when it never was; ``groups`` is what ALERTS holds."""
    return max(now - told["told"], 0) if (told := groups.get(HEARD.decode())) else None


def firing(groups: dict[str, dict[str, Any]], now: int) -> list[Firing]:
    """Return the alerts that fire, the severest first; ``groups`` is what ALERTS holds."""
    alerts = [
        Firing(**alert) for told in groups.values() if now - told["told"] <= GROUP_KEPT for alert in told["alerts"]
    ]
    return sorted(alerts, key=lambda alert: (alert.severity != "critical", alert.name, alert.host))
