"""One test for each fault on each host. The rows of different hosts run side by side; a test waits for its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
import yaml

from tests.chaos import report, row
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.host import Host

SCENARIO = yaml.safe_load(Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"], "molecule.yml").read_text())
HOSTS = [Host(platform["name"]) for platform in SCENARIO["platforms"]]
# Set by molecule/chaos_full alone: where the tables go.
REPORT = os.environ.get("CHAOS_REPORT")
PACE = row.FULL if REPORT else row.SHORT
FAULTS_HERE = [fault for fault in FAULTS if REPORT or fault.quick]
ROWS = [(host, fault) for fault in FAULTS_HERE for host in HOSTS if host.pool in fault.pools]

Rows = dict[tuple[Host, Fault], Future[row.Result]]


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> Iterator[Rows]:
    """Start all rows that were asked for, one after the other on each host."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    chosen = [cast("tuple[Host, Fault]", test.callspec.params["chosen"]) for test in tests]
    threads = {host: ThreadPoolExecutor(max_workers=1) for host in HOSTS}
    futures = {(host, fault): threads[host].submit(row.run, host, fault, PACE) for host, fault in chosen}
    yield futures
    results = [future.result() for future in futures.values()]
    if REPORT and len(chosen) == len(ROWS):
        report.write(Path(REPORT), HOSTS, results, PACE, row.DRAIN)


# A test waits for the rows before its own on the same host too, when other hosts were faster.
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chosen", ROWS, ids=lambda chosen: f"{chosen[0].name}: {chosen[1].name}")
def test_no_accepted_task_is_lost_or_runs_twice_at_once(rows: Rows, chosen: tuple[Host, Fault]) -> None:
    result = rows[chosen].result()
    print(report.one_line(result))  # noqa: T201 - what pytest shows when the test fails
    assert not result.problems
