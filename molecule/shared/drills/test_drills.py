"""Fire drills: a fault, its alert in the real Alertmanager, its runbook as a person would run it, and calm again.

Faults whose alerts take minutes are brought before the others and met after them. What is drilled on a scenario's hosts
is in its tests/drills.yml. The run writes a page in docs.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from urllib.parse import quote

import pytest
import yaml
from conftest import EPHEMERAL, PROJECT, SCENARIO, VaultInventory, ask, firing
from shared.drills.hosts import PLATFORMS, bash, present_hosts
from testinfra.host import Host

from celery_durable.testing import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]
CASES = yaml.safe_load((SCENARIO / "tests/drills.yml").read_text())
on_main = pytest.mark.hosts(str(CASES["main"]))

# Seconds. An alert over the last 15 minutes ends 15 minutes after its cause.
LONGEST_ALERT, LONGEST_END = 1500, 1200
INTERVAL = 5  # monitoring_scrape_interval in molecule.yml
PAGE = PROJECT / CASES["page"]
HEAD = """# {title}

Written by `make drills` on {date} UTC, commit {commit}; do not edit. {verdict} {hosts} hosts on one machine with two
cores; Prometheus asks every 5 s instead of every 15 s. Each row brings a fault, waits for its alert in Alertmanager,
runs the runbook's playbook once to look (it must change nothing) and once with `-e confirm=yes`, and waits for the
alert's end.

Time to alert counts from the fault. Time to repair counts from the start of the confirmed run until it has verified
that the fault is gone, and from there counts the time until the alert is over: one that looks at the last minutes goes
on for these minutes. Both times of an alert are Prometheus' own (`ALERTS`).

"""


# Lists of one host and its commands each.
Commands = list[dict[str, str]]


@dataclass(frozen=True)
class Drill:
    """One row of the page."""

    fault: str
    runbook: str  # below playbooks/
    alerts: list[str] = field(default_factory=list)  # none: a procedure that no alert asks for
    inject: Commands = field(default_factory=list)
    variables: str = ""  # that the person gives it; {} is the last line that inject has printed
    limit: str = ""  # the host that it runs on alone
    look: str = "Nothing was changed"  # what the run without confirm=yes must say; empty: it has no such run
    outside: Commands = field(default_factory=list)  # what others repair meanwhile: a provider, a network
    well: Commands = field(default_factory=list)  # succeeds when the fault is gone, beside what the runbook verifies
    clean: Commands = field(default_factory=list)  # removes what the drill itself has left
    slow: bool = False  # its alerts take minutes: begun before all others, met in its turn


@dataclass
class Row:
    """What a drill has measured, in seconds (the first two since 1970); None is what did not happen."""

    began: float
    hosts: dict[str, str]
    repaired: float | None = None
    printed: str = ""
    to_alert: dict[str, float] = field(default_factory=dict)
    to_repair: float | None = None
    to_end: float | None = None


DRILLS, WITHOUT = [Drill(**case) for case in CASES["drills"]], CASES["without"]
INVENTORY = VaultInventory(EPHEMERAL / "drills")
rows: dict[str, Row] = {}
by_fault = pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.fault.replace(" ", "_"))


def shell(commands: Commands, hosts: dict[str, str]) -> str:
    """Run commands as root on their hosts, one after the other; return what the last one has printed."""
    printed = ""
    for name, command in (pair for step in commands for pair in step.items()):
        run = bash(hosts[name], command)
        printed = run.stdout.strip()
        assert run.returncode == 0, f"{hosts[name]}: {command}\n{run.stdout}{run.stderr}"
    return printed


def playbook(drill: Drill, printed: str, *options: str) -> str:
    """Run the drill's runbook as a person does; return what it says."""
    command = [str(PROJECT / "playbooks" / drill.runbook), f"--extra-vars=evidence_directory={EPHEMERAL / 'evidence'}"]
    if drill.limit:
        command.append(f"--limit={drill.limit}")
    if drill.variables:
        command.append(f"--extra-vars={drill.variables.format(printed)}")
    run = INVENTORY.playbook(*command, *options)
    # A run that only looks, or beside a slow fault that has begun, ends as a failure: something critical stays.
    honest = ("Nothing was changed.", "Something else stays CRITICAL")
    assert run.returncode == 0 or any(end in run.stdout for end in honest), run.stdout[-8000:]
    return run.stdout


@pytest.fixture(scope="module", autouse=True)
def page() -> Iterator[None]:
    """Write it when all drills were tried."""
    INVENTORY.create()
    yield
    INVENTORY.give_back()
    if len(rows) == len(DRILLS):
        PAGE.write_text(_page())


def fires(host: Host, alert: str) -> bool:
    """Tell whether Alertmanager shows an alert."""
    return alert in firing(host)


def fired(host: Host, alert: str, since: float) -> list[int]:
    """Return when Prometheus evaluated an alert that fired, of all its evaluations since then."""
    query = quote(f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})')
    span = f"start={since:.0f}&end={time.time() + INTERVAL:.0f}&step={INTERVAL}"  # the newest, too
    found = ask(host, f"query_range?query={query}&{span}")["result"]
    return [int(at) for series in found for at, _ in series["values"]]


def ended(host: Host, alert: str, since: float) -> float:
    """Return when an alert did not fire any more that did at that time, or that time itself."""
    at = since
    for moment in fired(host, alert, since):
        if moment - at > 2 * INTERVAL:
            break
        at = moment + INTERVAL
    return max(at, since)


def calm(host: Host, drill: Drill) -> bool:
    """Tell whether no alert of a drill fires; Alertmanager hears of one some time after Prometheus has decided."""
    now = time.time()
    return not firing(host) & set(drill.alerts) and not any(
        fired(host, alert, now - 2 * INTERVAL) for alert in drill.alerts
    )


def begin(drill: Drill, host: Host) -> None:
    """Bring the fault, when the alerts of an earlier one are over."""
    wait_for(lambda: calm(host, drill), f"the end of {drill.alerts} before the fault", LONGEST_END)
    rows[drill.fault] = row = Row(time.time(), present_hosts())
    row.printed = shell(drill.inject, row.hosts).rpartition("\n")[2]


@on_main
def test_slow_faults_are_brought(host: Host) -> None:
    for drill in DRILLS:
        if drill.slow:
            begin(drill, host)


@on_main
@by_fault
def test_fault_alert_and_repair(drill: Drill, host: Host) -> None:
    try:
        if not drill.slow:
            begin(drill, host)
        row = rows[drill.fault]
        for alert in drill.alerts:
            wait_for(partial(fires, host, alert), alert, LONGEST_ALERT)
            row.to_alert[alert] = fired(host, alert, row.began)[0] - row.began
        if drill.look:
            said = playbook(drill, row.printed)
            assert drill.look in said, said[-3000:]
        shell(drill.outside, row.hosts)
        began = time.time()
        playbook(drill, row.printed, "--extra-vars=confirm=yes")
        shell(drill.well, row.hosts)
        row.repaired = time.time()
        row.to_repair = row.repaired - began
    finally:
        shell(drill.clean, rows[drill.fault].hosts)


@on_main
@by_fault
def test_the_alert_ends(drill: Drill, host: Host) -> None:
    row = rows[drill.fault]
    assert row.repaired is not None, "its repair failed"
    wait_for(lambda: not firing(host) & set(drill.alerts), f"the end of {drill.alerts}", LONGEST_END)
    row.to_end = max((ended(host, alert, row.repaired) - row.repaired for alert in drill.alerts), default=0)


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", "-C", PROJECT, *arguments], text=True).strip()


def _page() -> str:
    commit = _git("rev-parse", "--short", "HEAD")
    # `make drills` writes two pages, one after the other.
    if _git("status", "--porcelain", "--", ".", ":(exclude)docs"):
        commit += "-dirty"
    failed = sum(row.to_end is None for row in rows.values())
    verdict = f"{failed} of {len(rows)} drills failed." if failed else f"All {len(rows)} drills succeeded."
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    lines = [HEAD.format(title=CASES["title"], hosts=len(PLATFORMS), date=date, commit=commit, verdict=verdict)]
    lines.append("| Fault | Time to alert | Runbook | Time to repair | Alert over after |\n|---|---|---|---|---|\n")
    for drill in DRILLS:
        row = rows[drill.fault]
        alerts = ", ".join(
            f"[{alert}](runbooks/{alert}.md) {_shown(row.to_alert.get(alert))}" for alert in drill.alerts
        )
        variables = drill.variables.format("ID")
        run = f"`{drill.runbook.removeprefix('../') if drill.limit else 'playbooks/' + drill.runbook}`"
        run += (f" `-e '{variables}'`" if variables else "") + (f" `--limit {drill.limit}`" if drill.limit else "")
        end = _shown(row.to_end) if drill.alerts else ""
        lines.append(f"| {drill.fault} | {alerts or 'none'} | {run} | {_shown(row.to_repair)} | {end} |\n")
    lines += ["\n## Alerts without a drill\n\n"] if WITHOUT else []
    lines += [f"- [{alert}](runbooks/{alert}.md): {reason.strip()}\n" for alert, reason in sorted(WITHOUT.items())]
    return "".join(lines)


def _shown(seconds: float | None) -> str:
    return "**never**" if seconds is None else f"{seconds:.0f} s"
