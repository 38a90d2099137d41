"""The page shows each side beside its reference."""

from tests.bench.performance import sides
from tests.bench.performance.figures import ASYNCIO, GUIDE, IDEAL, Figures
from tests.bench.performance.page import REQUESTS, page


def test_a_row_has_median_range_and_ratio() -> None:
    figures: Figures = {
        "waiting": {side.name: [4.0, 4.0, 4.0] for side in sides.WAITING},
        "waiting_mib": {side.name: [200.0, 200.0, 200.0] for side in sides.WAITING},
        "nothing": {side.name: [1000.0, 1000.0, 1000.0] for side in sides.NOTHING},
        "thousand": {ASYNCIO: [22.0, 21.0, 25.0], IDEAL: [20.0, 20.0, 20.0]},
    }
    for name, side in REQUESTS:
        for suffix in ("", "_p50", "_p99", "_answers", "_failed", "_broken"):
            figures.setdefault(name + suffix, {})[side] = [1500.0, 1500.0, 1500.0]
    figures["waiting"][ASYNCIO] = [410.0, 390.0, 400.0]
    figures["enqueue_failed"][GUIDE] = [0.0, 2.0, 1.0]
    run = {
        "date": "2026-11-30 12:00",
        "commit": "0123abc",
        "machine": "2 cores",
        "versions": {"celery": "5.7.0", "arq": "0.28.0"},
        "rounds": 3,
        "wait_seconds": 1.0,
        "burst_seconds": 10.0,
        "tasks": 3000,
        "seconds": 700,
        "figures": figures,
        "others": 0.02,
        "draft": False,
    }
    text = page(run)
    assert f"| {ASYNCIO} | 500 | 400 (390 to 410) | 100.00 | 200 (200 to 200) | 1.00 |" in text
    assert f"| enqueue | {GUIDE} | 1,500 (1,500 to 1,500) | reference |" in text
    assert "| 4,500 | 3 |" in text
    assert "need 22.0 (21.0 to 25.0) s" in text
    assert "draft" not in text.lower()
