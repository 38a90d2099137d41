"""The page docs/reports/performance.md."""

import statistics
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from tests.bench.performance import figures, measures, sides
from tests.bench.performance.figures import API, BARE, BATCH, GUIDE, LEAST, MEASURES, Figures, ratio

TEMPLATE = Path(__file__).with_name("page.md.j2")

REQUESTS = (
    *(("enqueue", side) for side in (GUIDE, API)),
    *(("status", side) for side in (GUIDE, API)),
    *(("health", side) for side in (BARE, API)),
    *(("batch", side) for side in (API, BATCH)),
)


def _spread(values: list[float]) -> str:
    """Show the median and the range of the rounds."""
    digits = 1 if statistics.median(values) < 100 else 0
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def page(run: dict[str, Any]) -> str:
    """Return the page of a run."""
    values: Figures = run["figures"]
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701 - no HTML
    environment.keep_trailing_newline = True
    environment.filters["spread"] = _spread

    def better(name: str, side: str) -> str:
        if name not in MEASURES:
            return ""
        return "reference" if side == MEASURES[name].reference else f"{ratio(values, name, side):.2f}"

    return environment.from_string(TEMPLATE.read_text()).render(
        run=run,
        values=values,
        better=better,
        measures=measures,
        figures=figures,
        waiting=sides.WAITING,
        nothing=sides.NOTHING,
        requests=REQUESTS,
        fall=1 - LEAST,
    )
