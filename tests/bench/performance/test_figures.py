"""A ratio of ours that falls fails the run; nothing else does."""

import copy

import pytest

from tests.bench.performance.figures import API, ASYNCIO, BATCH, GUIDE, PREFORK, Figures, fallen, ratio

BASELINE: Figures = {
    "waiting": {GUIDE: [4.0, 4.0, 4.0], ASYNCIO: [400.0, 420.0, 380.0], "arq": [400.0, 400.0, 400.0]},
    "waiting_mib": {GUIDE: [200.0, 200.0, 200.0], ASYNCIO: [100.0, 100.0, 100.0]},
    "nothing": {GUIDE: [1000.0, 500.0, 2000.0], PREFORK: [1500.0, 750.0, 3000.0]},
    "enqueue": {GUIDE: [1000.0, 1000.0, 1000.0], API: [2000.0, 2000.0, 2000.0]},
    "enqueue_p99": {GUIDE: [100.0, 100.0, 100.0], API: [50.0, 50.0, 50.0]},
    "batch": {API: [2000.0, 2000.0, 2000.0], BATCH: [20000.0, 20000.0, 20000.0]},
}


def changed(name: str, side: str, factor: float) -> Figures:
    """Return a run like the baseline, with one side of one measure changed."""
    figures = copy.deepcopy(BASELINE)
    figures[name][side] = [value * factor for value in figures[name][side]]
    return figures


def test_a_ratio_is_of_the_same_round_and_above_one_is_better() -> None:
    assert ratio(BASELINE, "nothing", PREFORK) == pytest.approx(1.5)
    assert ratio(BASELINE, "waiting_mib", ASYNCIO) == pytest.approx(2)


def test_the_same_run_passes() -> None:
    assert fallen(BASELINE, BASELINE) == []


@pytest.mark.parametrize(
    ("name", "side", "factor"),
    [
        ("waiting", ASYNCIO, 1.5),  # better
        ("waiting_mib", ASYNCIO, 0.5),  # less memory
        ("nothing", PREFORK, 0.85),  # within the noise
        ("nothing", GUIDE, 0.7),  # the reference is slower: ours is better than it was
        ("waiting", "arq", 0.1),  # theirs
        ("enqueue_p99", API, 4),  # not judged
    ],
)
def test_what_is_no_fall_of_ours_passes(name: str, side: str, factor: float) -> None:
    assert fallen(BASELINE, changed(name, side, factor)) == []


@pytest.mark.parametrize(
    ("name", "side", "factor"),
    [
        ("waiting", ASYNCIO, 0.75),
        ("waiting_mib", ASYNCIO, 1.4),
        ("nothing", PREFORK, 0.79),
        ("nothing", GUIDE, 1.3),
        ("batch", BATCH, 0.7),
    ],
)
def test_a_ratio_that_falls_by_a_fifth_is_found(name: str, side: str, factor: float) -> None:
    (found,) = fallen(BASELINE, changed(name, side, factor))
    assert " fell from " in found


def test_a_machine_twice_as_slow_for_all_passes() -> None:
    slow = copy.deepcopy(BASELINE)
    for sides in slow.values():
        for side, values in sides.items():
            sides[side] = [value / 2 for value in values]
    assert fallen(BASELINE, slow) == []


@pytest.mark.parametrize("missing", ["side", "measure"])
def test_what_is_measured_no_more_is_found(missing: str) -> None:
    figures = copy.deepcopy(BASELINE)
    if missing == "side":
        del figures["nothing"][PREFORK]
    else:
        del figures["nothing"]
    assert fallen(BASELINE, figures) == [f"tasks that do nothing, a second ({PREFORK}) is missing"]


def test_what_is_new_passes() -> None:
    assert fallen({}, BASELINE) == []
