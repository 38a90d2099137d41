"""Fire drills: a fault, its alert in the real Alertmanager, its runbook as a person would run it, and calm again.

Faults whose alerts take minutes are brought before the others and met after them. The run writes docs/drills.md.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import pytest
from conftest import EPHEMERAL, PROJECT, firing, wait_for
from monitoring.tests.drills import DRILLS, MAIN, WITHOUT, Drill
from testinfra.host import Host

pytestmark = pytest.mark.timeout(2400)
on_main = pytest.mark.hosts(MAIN)

# Seconds. An alert over the last 15 minutes ends 15 minutes after its cause.
LONGEST_ALERT, LONGEST_END = 1500, 1200
PAGE = PROJECT / "docs/drills.md"
HEAD = """# Fire drills

Written by `make drills` on {date} UTC, commit {commit}; do not edit. {verdict} Two hosts on one machine with two cores;
Prometheus asks every 5 s instead of every 15 s. Each row brings a fault, waits for its alert in Alertmanager, runs the
runbook's playbook once to look (it must change nothing) and once with `-e confirm=yes`, and waits for the alert's end.

Time to alert counts from the fault. Time to repair counts from the start of the confirmed run until it has verified
that the fault is gone. An alert that looks at the last minutes goes on for these minutes.

"""


@dataclass
class Row:
    """What a drill has measured, in seconds; None is what did not happen."""

    began: float
    to_alert: dict[str, float] = field(default_factory=dict)
    to_repair: float | None = None
    mended: float | None = None
    to_end: float | None = None


rows: dict[str, Row] = {}
ORDER = [*(drill for drill in DRILLS if not drill.slow), *(drill for drill in DRILLS if drill.slow)]
by_fault = pytest.mark.parametrize("drill", ORDER, ids=lambda drill: drill.fault.replace(" ", "_"))


def shell(commands: str, *names: str) -> None:
    """Run commands as root on hosts."""
    for name in names:
        run = subprocess.run(
            [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", name, "bash", "-e"],
            input=commands,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert run.returncode == 0, f"{name}: {commands}\n{run.stdout}{run.stderr}"


def playbook(drill: Drill, *options: str) -> str:
    """Run the drill's runbook as a person does; return what it says."""
    command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", str(PROJECT / "playbooks" / drill.runbook)]
    command += [f"--extra-vars={EVIDENCE}", *(["--extra-vars", drill.variables] if drill.variables else []), *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    return run.stdout


EVIDENCE = f"evidence_directory={EPHEMERAL / 'evidence'}"


@pytest.fixture(scope="module", autouse=True)
def page() -> Iterator[None]:
    """Write docs/drills.md when all drills were tried."""
    yield
    if len(rows) == len(DRILLS):
        PAGE.write_text(_page())


def test_every_alert_has_a_drill_or_a_reason() -> None:
    alerts = re.findall(r"- alert: (\w+)", (PROJECT / "roles/monitoring/templates/alerts.yml.j2").read_text())
    drilled = {alert for drill in DRILLS for alert in drill.alerts}
    assert drilled | WITHOUT.keys() == set(alerts)
    assert not drilled & WITHOUT.keys()


def fires(host: Host, alert: str) -> bool:
    """Tell whether Alertmanager shows an alert."""
    return alert in firing(host)


def begin(drill: Drill, host: Host) -> None:
    """Bring the fault."""
    assert not firing(host) & set(drill.alerts), "it fires before the fault"
    rows[drill.fault] = Row(time.monotonic())
    shell(drill.inject, *drill.on)


@on_main
def test_slow_faults_are_brought(host: Host) -> None:
    for drill in DRILLS:
        if drill.slow:
            begin(drill, host)


@on_main
@by_fault
def test_fault_alert_and_repair(drill: Drill, host: Host) -> None:
    if not drill.slow:
        begin(drill, host)
    row = rows[drill.fault]
    try:
        for alert in drill.alerts:
            wait_for(partial(fires, host, alert), alert, LONGEST_ALERT)
            row.to_alert[alert] = time.monotonic() - row.began
        if drill.looks:
            said = playbook(drill)
            assert "Nothing was changed" in said, said[-3000:]
        if drill.outside:
            shell(drill.outside, *drill.on)
        began = time.monotonic()
        playbook(drill, "--extra-vars=confirm=yes")
        shell(drill.well, *drill.on)
        row.mended = time.monotonic()
        row.to_repair = row.mended - began
    finally:
        shell(drill.clean, *drill.on)


@on_main
@by_fault
def test_the_alert_ends(drill: Drill, host: Host) -> None:
    row = rows[drill.fault]
    assert row.mended is not None, "its repair failed"
    wait_for(lambda: not firing(host) & set(drill.alerts), f"the end of {drill.alerts}", LONGEST_END)
    row.to_end = time.monotonic() - row.mended


def _page() -> str:
    commit = subprocess.check_output(["git", "-C", PROJECT, "describe", "--always", "--dirty"], text=True).strip()
    failed = sum(row.to_end is None for row in rows.values())
    verdict = f"{failed} of {len(rows)} drills failed." if failed else f"All {len(rows)} drills succeeded."
    lines = [HEAD.format(date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), commit=commit, verdict=verdict)]
    lines.append("| Fault | Time to alert | Runbook | Time to repair | Alert over after |\n|---|---|---|---|---|\n")
    for drill in DRILLS:
        row = rows[drill.fault]
        alerts = ", ".join(
            f"[{alert}](runbooks/{alert}.md) {_shown(row.to_alert.get(alert))}" for alert in drill.alerts
        )
        run = f"`playbooks/{drill.runbook}`" + (f" `-e '{drill.variables}'`" if drill.variables else "")
        lines.append(f"| {drill.fault} | {alerts} | {run} | {_shown(row.to_repair)} | {_shown(row.to_end)} |\n")
    lines.append("\n## Alerts without a drill\n\n")
    lines += [f"- [{alert}](runbooks/{alert}.md): {reason}\n" for alert, reason in sorted(WITHOUT.items())]
    return "".join(lines)


def _shown(seconds: float | None) -> str:
    return "**never**" if seconds is None else f"{seconds:.0f} s"
