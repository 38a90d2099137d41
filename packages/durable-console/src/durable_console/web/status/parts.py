"""The state of each part, and of the whole."""

from dataclasses import dataclass

from celery_durable.aio.workforce import ALIVE_SECONDS
from durable_console.web.alerts import Firing
from durable_console.web.prometheus import Snapshot
from durable_console.web.status.formats import duration
from durable_console.web.status.last_hour import Recent

# Seconds after which Alertmanager counts as silent; its watchdog comes every five minutes.
SILENT_SECONDS = 600


@dataclass(frozen=True)
class Part:
    """A part of the platform; ``state`` (ok, warn, bad, unknown) chooses the colour of ``word``."""

    name: str
    state: str
    word: str
    text: str


def parts_of(seen: Snapshot, recent: Recent, *, broker: bool, results: bool) -> list[Part]:
    """Return the parts besides the one that makes the page."""
    return [
        _redis_part("Broker", broker, "tasks are neither accepted nor begun"),
        _redis_part("Results", results, "tasks in hand wait until they can store theirs"),
        _workers_part(seen, broker=broker),
        _alerting_part(recent, broker=broker),
        *_entries_part(seen, recent),
    ]


def _redis_part(name: str, up: bool, impact: str) -> Part:
    if up:
        return Part(name, "ok", "works", "Redis answers.")
    return Part(name, "bad", "broken", f"Redis does not answer: {impact}.")


def _workers_part(seen: Snapshot, *, broker: bool) -> Part:
    if not broker:
        return Part("Workers", "unknown", "unknown", "They report through the broker.")
    alive = sum(state["silent"] < ALIVE_SECONDS for state in seen.workers.values())
    expected = seen.workers_expected
    text = f"{alive} of {expected} alive." if expected else f"{alive} alive."
    if not alive:
        return Part("Workers", "bad", "broken", f"{text} Tasks wait.")
    if alive < expected:
        return Part("Workers", "warn", "too few", text)
    return Part("Workers", "ok", "works", text)


def _alerting_part(recent: Recent, *, broker: bool) -> Part:
    if not broker:
        return Part("Alerting", "unknown", "unknown", "Alerts are kept in the broker.")
    if recent.heard is None:
        return Part("Alerting", "unknown", "not heard", "Without a monitoring host there is nothing to hear.")
    if recent.heard > SILENT_SECONDS:
        text = f"Alertmanager was last heard {duration(recent.heard)} ago: alerts may not arrive."
        return Part("Alerting", "bad", "silent", text)
    return Part("Alerting", "ok", "works", f"Alertmanager was heard {duration(recent.heard)} ago.")


def _entries_part(seen: Snapshot, recent: Recent) -> list[Part]:
    """Return a part only when something is wrong."""
    keys = sorted(key for key, number in seen.bad.items() if number)
    if not keys and not recent.bad:
        return []
    where = f" ({', '.join(keys)})" if keys else ""
    text = f"Entries of the broker's keys{where} are not of the expected form and are not shown."
    return [Part("Entries", "warn", "unreadable", text)]


def headline(parts: list[Part], alerts: list[Firing]) -> tuple[str, str]:
    """Return the state of the whole, and a sentence."""
    wrong = [part for part in parts if part.state in {"warn", "bad"}]
    sentences = [f"{part.name}: {part.word}" for part in wrong]
    if alerts:
        sentences.append("1 alert fires" if len(alerts) == 1 else f"{len(alerts)} alerts fire")
    if not sentences:
        return "ok", "All parts work"
    bad = any(part.state == "bad" for part in wrong) or any(alert.severity == "critical" for alert in alerts)
    return "bad" if bad else "warn", ", ".join(sentences)
