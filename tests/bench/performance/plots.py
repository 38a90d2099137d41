"""Bars as SVG: ``.cache/bench/bin/python -m tests.bench.performance.plots RUN.json DIRECTORY``."""

import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.bench.performance.figures import MEASURES, Figures

PLOTS = {
    "performance-waiting": ("waiting", "waiting_mib"),
    "performance-nothing": ("nothing",),
    "performance-requests": ("enqueue", "status", "health"),
}
OURS, OTHERS = "#1f6feb", "#8b949e"
UNITS = {"waiting_mib": " (MiB, less is better)"}


def draw(figures: Figures, names: tuple[str, ...], file: Path) -> None:
    """Write the medians of some measures side by side, each with the range of its rounds."""
    height = 0.35 * max(len(figures[name]) for name in names) + 0.8
    figure = Figure(figsize=(4.5 * len(names), height), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        sides = list(reversed(figures[name]))
        medians = [statistics.median(figures[name][side]) for side in sides]
        ranges = [
            [median - min(figures[name][side]) for side, median in zip(sides, medians, strict=True)],
            [max(figures[name][side]) - median for side, median in zip(sides, medians, strict=True)],
        ]
        colors = [OURS if side.startswith("ours") else OTHERS for side in sides]
        bars = axes.barh(sides, medians, xerr=ranges, color=colors, ecolor="#30363d")
        axes.bar_label(bars, [f"{median:,.0f}" for median in medians], padding=4, fontsize=8)
        axes.set_title(MEASURES[name].title + UNITS.get(name, ""), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    """Draw all plots of a run."""
    mpl.rcParams.update({"svg.hashsalt": "performance", "svg.fonttype": "none"})
    figures: Figures = json.loads(Path(sys.argv[1]).read_text())["figures"]
    for name, measures in PLOTS.items():
        draw(figures, measures, Path(sys.argv[2]) / f"{name}.svg")


if __name__ == "__main__":
    main()
