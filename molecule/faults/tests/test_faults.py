"""Random faults, one after the other on each host; the page of it is written in the end."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import EPHEMERAL, PROJECT

from tests.chaos.host import Host
from tests.faults import report, trial

HOSTS = {"debian12": Host("site-debian12"), "debian13": Host("site-debian13")}
FIRST, COUNT = int(os.environ.get("SEED", "1")), int(os.environ.get("N", "20"))


@pytest.mark.timeout(COUNT * 600)
def test_random_faults() -> None:
    inventory = EPHEMERAL / "inventory"
    seeds = range(FIRST, FIRST + COUNT)

    healthy = [trial.untouched(host, system, inventory) for system, host in HOSTS.items()]

    def work(system: str, mine: list[int]) -> list[trial.Trial]:
        files = Path(EPHEMERAL, f"{system}.json")
        return [trial.run(HOSTS[system], system, inventory, seed, files) for seed in mine]

    with ThreadPoolExecutor() as threads:
        halves = [
            threads.submit(work, system, list(seeds[number :: len(HOSTS)])) for number, system in enumerate(HOSTS)
        ]
        trials = sorted((each for half in halves for each in half.result()), key=lambda each: each.seed)
    report.write(PROJECT / "docs/reports/faults.md", trials, healthy)
    assert healthy == [[], []]
    assert not any(each.hung for each in trials)
