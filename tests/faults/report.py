"""The page docs/reports/faults.md, written by ``make faults``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.host import PROJECT, command
from tests.chaos.report import table
from tests.faults.trial import Trial

HEAD = """# Faults that nobody wrote down

Written by `make faults` on {date} UTC, commit {commit}; do not edit. Random changes of an installed host, by the seeds
{seeds} (tests/faults/mutations.py): {all} were tried, and after {broken} of them the platform did not do its work.

{summary}

**Named**: which sentence of the doctor's verdict names a changed object, 0 for none. **Seconds**: until the verdict.
**Repaired**: a task goes all the way and Flower opens, after the runbook that the first sentence names. False alarms on
hosts to which nothing was done: {alarms}.

{rows}

## Misses

{misses}
"""


def write(path: Path, trials: Sequence[Trial], healthy: Sequence[Sequence[str]]) -> None:
    """Write it."""
    broken = [trial for trial in trials if trial.broken]
    places = [trial.place() for trial in broken]
    share = {
        "named first": sum(place == 1 for place in places),
        "named among the first three": sum(0 < place <= 3 for place in places),
        "named at all": sum(place > 0 for place in places),
        "repaired by the named runbook": sum(trial.repaired for trial in broken),
        "hung": sum(bool(trial.hung) for trial in broken),
    }
    rows = [
        (
            t.seed,
            t.what,
            place,
            f"{t.seconds:.0f}",
            f"`{t.runbook}`" if t.runbook else "",
            "yes" if t.repaired else "**no**",
        )
        for t, place in zip(broken, places, strict=True)
    ]
    misses = "\n".join(
        f"- {t.seed}: {t.what}\n" + "\n".join(f"  - {line[:300]}" for line in t.sentences[:3] or ["nothing was said"])
        for t, place in zip(broken, places, strict=True)
        if place != 1
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        HEAD.format(
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            commit=command("git", "-C", PROJECT, "describe", "--always", "--dirty", "--abbrev=7"),
            seeds=f"{trials[0].seed} to {trials[-1].seed}",
            all=len(trials),
            broken=len(broken),
            alarms=sum(map(len, healthy)),
            summary=table(
                ("Of these", "Number", "Share"), [(k, n, f"{n / max(len(broken), 1):.0%}") for k, n in share.items()]
            ),
            rows=table(("Seed", "Fault", "Named", "Seconds", "Runbook", "Repaired"), rows),
            misses=misses or "None.",
        )
    )
