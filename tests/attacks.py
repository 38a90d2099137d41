"""A table of attacks at the end of a run, for ``make security``: ``pytest -p tests.attacks -m attack``.

Tests with the marker ``attack("what stops it")`` are attacks; their names say what is tried.
"""

from collections import Counter, defaultdict

import pytest

STOPPED_BY = "stopped by"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hand what stops an attack to its report; it may come from another process."""
    if marker := item.get_closest_marker("attack"):
        item.user_properties.append((STOPPED_BY, marker.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line for each test, however many cases it has."""
    outcomes: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if stopped_by := dict(report.user_properties).get(STOPPED_BY):
                outcomes[report.nodeid.partition("[")[0], stopped_by][outcome] += 1
    terminalreporter.write_line("| attack | stopped by | test | result |\n| --- | --- | --- | --- |")
    for (test, stopped_by), counts in outcomes.items():
        file, *_, name = test.split("::")
        attack = name.removeprefix("test_").replace("_", " ")
        result = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        terminalreporter.write_line(f"| {attack} | {stopped_by} | {file} | {result} |")
