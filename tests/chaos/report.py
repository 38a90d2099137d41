"""The page docs/reports/chaos.md, written by ``make chaos``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.faults import FAULTS, RECOVERY_LIMIT
from tests.chaos.host import PROJECT, Host, command
from tests.chaos.kinds import CYCLE, LEAD, PERIOD
from tests.chaos.probe.client import COUNTDOWN, REVOKED_COUNTDOWN
from tests.chaos.probe.sitecustomize import SECONDS, TICK_SECONDS
from tests.chaos.row import LONGEST_STALL, Pace, Result

HEAD = """# What becomes of accepted tasks when something breaks

Written by `make chaos` on {date} UTC, commit {commit}; do not edit. {verdict}

Each row sends {rate} tasks per second, two seconds of work each, to a host with four task slots (pool asyncio:
coroutines): {before:.0f} s before the fault, through it, and {after:.0f} s after the recovery. The client repeats a
request that got no answer, 429 or 503, with the same `Idempotency-Key`. A probe in the worker writes every start and
end of a task to a ledger outside Redis.

Beside them a plain Celery client sends {cycle} tasks at once, {lead} s before the fault and every {period:.0f} s until
the recovery: a chord of two parts with its callback, a chain of two links, a task that rejects its message once, two
with a rate limit, one with a countdown of {countdown} s, and one that is revoked while its countdown of {revoked} s
runs. Each does {seconds} s of work. The client repeats nothing: a task is accepted when it was sent without an error.
Celery beat sends one each {tick:.0f} s.

## Hosts

{hosts}

## Seconds until the next task started

From the end of the fault: the signal was sent, Redis answered again, the network was repaired, the host had booted, the
playbook had ended. Where the fault ends the worker, a task of the new one counts. **Bold** is a row that broke a rule.

{overview}

## How to read the tables

- **Accepted**: answered with 202, or sent by the Celery client or beat: those in brackets. **Lost**: accepted,
  but without SUCCESS or without an end in the ledger {drain:.0f} s after the load. What is revoked ends as REVOKED.
  Where no worker confirmed it, because none listened or Redis did not answer, it may end either way.
- A row is also broken by a revoked task that starts after a worker's confirmation, and by a callback or link that
  starts before the work in front of it is done. A chord without its callback is lost. Where the end of the append-only
  file is cut off, one chord, chain or task of the Celery client may be lost: it repeats nothing.
- A row is broken by two runs that beat sends within half of their interval, too, and where it sends none for
  {stall:.0f} s on top of the fault's length. What Redis forgets of its last run is sent once more.
- **Twice**: tasks that were started more than once; the last column says why. A task whose process died must run again.
- **At once**: started while the process of an earlier run still lived and had not ended it. **For nothing**: started
  again although it had been done. Both must be 0, the second except where the fault makes Redis forget. **Twice** must
  be 0 too where the fault ends no process that runs tasks. The second run of a task that rejected its message is none.
- **Stall**: longest time without a start, beyond the usual one; at most {stall:.0f} s on top of the fault's length.
  **Recovery**: as above, at most {limit:.0f} s.
- **Refused**: answers 429 and 503. **Unanswered**: nobody listened, or no answer came within 5 s. **Slowest**: answer
  of the API, seconds.
"""


def one_line(result: Result) -> str:
    """Show everything that a row has measured."""
    return json.dumps(asdict(result), ensure_ascii=False)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, hosts: list[Host], results: list[Result], pace: Pace, drain: float) -> None:
    """Write the page."""
    by_row = {(result.host, result.fault): result for result in results}
    failed = sum(bool(result.problems) for result in results)
    verdict = f"{failed} of {len(results)} rows broke a rule." if failed else f"All {len(results)} rows kept the rules."

    def recovery(host: Host, name: str) -> str:
        result = by_row.get((host.name, name))
        if result is None:
            return "no children"
        shown = "never" if result.recovery is None else f"{result.recovery:.1f}"
        return f"**{shown}**" if result.problems else shown

    parts = [
        HEAD.format(
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            commit=command("git", "-C", PROJECT, "describe", "--always", "--dirty"),
            verdict=verdict,
            rate=pace.rate,
            before=pace.before,
            after=pace.after,
            drain=drain,
            limit=RECOVERY_LIMIT,
            stall=LONGEST_STALL,
            cycle=sum(CYCLE.values()),
            lead=LEAD,
            period=PERIOD,
            countdown=COUNTDOWN,
            revoked=REVOKED_COUNTDOWN,
            seconds=SECONDS,
            tick=TICK_SECONDS,
            hosts=table(
                ("Supervision", "Pool", "Versions"),
                ((host.supervision, host.pool, host.versions()) for host in hosts),
            ),
            overview=table(
                ("Fault", *(f"{host.supervision}, {host.pool}" for host in hosts)),
                ((fault.name, *(recovery(host, fault.name) for host in hosts)) for fault in FAULTS),
            ),
        )
    ]
    for host in hosts:
        parts.append(f"## {host.supervision.capitalize()}, {host.pool}\n")
        rows = [_cells(by_row[host.name, fault.name]) for fault in FAULTS if host.pool in fault.pools]
        parts.append(table(COLUMNS, rows) + "\n")
    parts.append("## The faults\n")
    parts.append(
        table(
            ("Fault", "Expected", "Limit of the recovery", "Proof that it happened, from one row"),
            (
                (
                    fault.name,
                    fault.expected,
                    f"{fault.recovery_limit:.0f} s" + (f": {fault.why}" if fault.why else ""),
                    next(result.proof for result in results if result.fault == fault.name),
                )
                for fault in FAULTS
            ),
        )
    )
    if failed:
        parts.append("\n## Broken rules\n")
        broken = [(result.host, result.fault, " ".join(result.problems)) for result in results if result.problems]
        parts.append(table(("Host", "Fault", "What was wrong"), broken))
    path.write_text("\n".join(parts) + "\n")


COLUMNS = (
    *("Fault", "Accepted", "Finished", "Lost", "Twice", "At once", "For nothing"),
    *("Stall", "Recovery", "Refused", "Unanswered", "Slowest", "Why twice"),
)


def _cells(result: Result) -> tuple[object, ...]:
    return (
        f"**{result.fault}**" if result.problems else result.fault,
        f"{result.accepted} ({result.others})",
        result.finished,
        result.lost,
        result.repeated,
        result.overlapping,
        result.unexplained + result.forgotten,
        f"{result.stall:.1f}",
        "never" if result.recovery is None else f"{result.recovery:.1f}",
        result.refused,
        result.unanswered,
        f"{result.slowest:.2f}",
        "; ".join(result.explanations) or "-",
    )
