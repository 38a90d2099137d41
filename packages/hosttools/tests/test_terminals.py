"""What tasks and clients put into logs does not reach an operator's terminal as commands."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hosttools import findings
from plugins.lookup.hosttools import program
from tests.support import ansible_playbook

# Clears the screen, sets its title, moves up and deletes a line; then C1's forms, and what turns the text round.
COMMANDS = "\x1b[2J\x1b]0;title\x07\x1b[1A\x1b[2K\r\x9b31m\x9d8;;x\x9c\u202e\u2066\u2028\x7f"
TASK = "0199-task"

pytestmark = pytest.mark.attack("what is reported is shown escaped")
texts = st.text(st.characters(blacklist_categories=()))


def is_harmless(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(is_harmless, [*value, *value.values()]))
    if isinstance(value, list):
        return all(map(is_harmless, value))
    return not isinstance(value, str) or all(char.isprintable() or char in "\n\t" for char in value)


@given(st.recursive(texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)))
def test_reports_are_printable(value: Any) -> None:
    assert is_harmless(findings.printable(value))
    assert findings.printable(findings.printable(value)) == findings.printable(value)


def test_a_timeline(tmp_path: Path) -> None:
    line = {"message": f"{TASK} {COMMANDS}", "service": COMMANDS, "level": "INFO", "exception": f"E: {COMMANDS}"}
    (tmp_path / "worker.log").write_text(f"{json.dumps(line)}\n{TASK} {COMMANDS}\n")
    command = [sys.executable, "-", "timeline", TASK, "--prefix=no-such", f"--log-directory={tmp_path}"]
    ran = subprocess.run(command, input=program(), capture_output=True, text=True, check=False, timeout=60)
    report = json.loads(ran.stdout)
    assert len(report["lines"]) >= 2, ran.stderr
    assert is_harmless(report)


def test_a_verdict_and_a_failure(tmp_path: Path) -> None:
    book = tmp_path / "book.yml"
    tasks = [
        {"ansible.builtin.set_stats": {"data": {"verdict": [f"CRITICAL a {COMMANDS}"]}}},
        {"ansible.builtin.fail": {"msg": f"b {COMMANDS}"}},
    ]
    book.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    ran = ansible_playbook("--inventory=localhost,", "--connection=local", book)
    *_, verdict, failure = [line for line in ran.stdout.split("\n") if line]
    assert (verdict[:10], failure[:16]) == ("CRITICAL a", "FAILED localhost"), ran.stdout
    assert is_harmless([verdict, failure])
