"""How verbs are called: their arguments, what a wrong value is answered, and which of them ask for confirm=yes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.playbooks.test_verbs import GROUPS, NAMES
from tests.support import REPOSITORY, ansible_report

PLAYBOOKS = REPOSITORY / "playbooks"
# Others end with it.
PART = PLAYBOOKS / "ops/roll_out.yml"
VERBS = sorted(
    path
    for folder in ("containers", "diagnose", "ops", "runbooks")
    for path in (PLAYBOOKS / folder).glob("*.yml")
    if path != PART
)
# What can be undone, or taken back by the same command. Whoever adds one says in docs/operations/playbooks.md why.
AT_ONCE = {"backup", "deploy", "generate_secrets", "promote_redis", "rotate_secrets", "scale_workers"}
# They change nothing.
LOOKS_ONLY = {"result_not_found"}
CONFIRM = {"name": "confirm", "flag": True}
WRONG = ("", " ", "no-such-choice", "-x", "1.5", "0", "a b", "yes\n", "1,,2", "'; true")
# Of the inventory, or a path that the playbook itself looks for.
OTHERS = {"inventory", "deploy_batches", "kubernetes_image", "kubernetes_context", "worker_max_tasks_per_child"}
OTHERS |= {"task_soft_time_limit", "task_time_limit"}


def name_of(verb: Path) -> str:
    """Return a verb as people call it."""
    return str(verb.relative_to(PLAYBOOKS).with_suffix(""))


def plays(verb: Path) -> list[dict[str, Any]]:
    """Return a playbook's plays."""
    content: list[dict[str, Any]] = yaml.safe_load(verb.read_text())
    return content


def arguments(verb: Path) -> list[dict[str, Any]]:
    """Return the arguments that a playbook declares."""
    declared: list[dict[str, Any]] = plays(verb)[0].get("vars", {}).get("arguments", [])
    return declared


def header(verb: Path) -> str:
    """Return the comment with which a playbook begins."""
    return "\n".join(re.findall(r"^#.*", verb.read_text().partition("\n- name:")[0], re.MULTILINE))


@pytest.mark.parametrize("verb", VERBS, ids=name_of)
def test_a_verb_declares_the_arguments_that_its_first_lines_show(verb: Path) -> None:
    shown = set(re.findall(r"-e (\w+)=", header(verb))) - OTHERS - {"confirm"}
    assert shown == {argument["name"] for argument in arguments(verb)}


WITH_ARGUMENTS = [verb for verb in VERBS if arguments(verb)]


@pytest.mark.parametrize("verb", WITH_ARGUMENTS, ids=name_of)
def test_a_verb_validates_its_arguments_first(verb: Path) -> None:
    includes = [task.get("ansible.builtin.include_tasks", "") for task in plays(verb)[0]["tasks"]]
    assert {"../tasks/validate_arguments.yml", "tasks/examine.yml"} & set(includes)


@pytest.mark.parametrize("folder", ["ops", "runbooks"])
def test_what_takes_something_away_shows_first(folder: str) -> None:
    for verb in VERBS:
        if verb.parent.name != folder or verb.stem in LOOKS_ONLY:
            continue
        asks = "-e confirm=yes" in header(verb)
        assert asks is (verb.stem not in AT_ONCE), verb
        text = verb.read_text()
        gates = ("confirm | default(false) | bool", "tasks/verdict.yml", "../tasks/confirm.yml")
        assert any(gate in text for gate in gates) is asks, verb


def test_the_page_of_the_playbooks_has_every_verb_and_its_rule() -> None:
    page = (REPOSITORY / "docs/operations/playbooks.md").read_text()
    rows = {
        row[0]: row[1:] for row in re.findall(r"^\| `(\w+/\w+)\.yml` \|[^|]*\|([^|]*)\|([^|]*)\|$", page, re.MULTILINE)
    }
    for verb in VERBS:
        if verb.parent.name in ("ops", "diagnose"):
            names, first = rows[name_of(verb)]
            assert set(re.findall(r"\w+", names)) - OTHERS == {argument["name"] for argument in arguments(verb)}
        if verb.parent.name == "ops":
            assert first.strip() == ("no" if verb.stem in AT_ONCE else "yes"), verb


def wrong_values(argument: dict[str, Any]) -> list[str]:
    """Return values that an argument must not have."""
    pattern = "yes|no" if argument.get("flag") else argument.get("pattern", "$^")
    values = [value for value in WRONG if not re.fullmatch(pattern, value)]
    assert values, argument
    return values[:4]


def case(argument: dict[str, Any], value: str) -> dict[str, Any]:
    """Return tasks that validate a value, and one named Case that prints the answer."""
    answer = "{{ ansible_failed_result.msg }}"
    validate = {
        "name": "Validate",
        "ansible.builtin.include_tasks": str(PLAYBOOKS / "tasks/validate_arguments.yml"),
        "vars": {"arguments": [argument], argument["name"]: value},
    }
    return {
        "block": [validate, {"name": "Case", "ansible.builtin.debug": {"msg": "It was accepted."}}],
        "rescue": [{"name": "Case", "ansible.builtin.debug": {"msg": answer}}],
    }


def test_every_wrong_value_is_answered_with_one_sentence(tmp_path: Path) -> None:
    """In one run: each verb's first play, with its values, validates wrong ones instead of doing its tasks."""
    cases: list[tuple[Path, str, str]] = []
    book: list[dict[str, Any]] = []
    for verb in WITH_ARGUMENTS:
        first = plays(verb)[0]
        declared = arguments(verb) if book else [CONFIRM, *arguments(verb)]
        wrong = [(given, value) for given in declared for value in wrong_values(given)]
        cases += [(verb, given["name"], value) for given, value in wrong]
        play = {
            "hosts": "one",
            "gather_facts": False,
            "roles": first.get("roles", []),
            "vars": {name: value for name, value in first.get("vars", {}).items() if name != "arguments"},
            "vars_files": [str((verb.parent / file).resolve()) for file in first.get("vars_files", [])],
            "tasks": [case(given, value) for given, value in wrong],
        }
        book.append(play)
    playbook = tmp_path / "plays.json"
    playbook.write_text(json.dumps(book))
    inventory = tmp_path / "hosts.json"
    hosts = {name: {"ansible_connection": "local"} for name in (*NAMES, "one")}
    children: dict[str, Any] = {group: {"hosts": {name: {} for name in names}} for group, names in GROUPS.items()}
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "children": children}}))
    answers = [
        " ".join(outcome["msg"].split())
        for play in ansible_report(f"--inventory={inventory}", playbook)["plays"]
        for task in play["tasks"]
        if task["task"]["name"] == "Case"
        for outcome in task["hosts"].values()
        if "msg" in outcome
    ]
    assert len(answers) == len(cases)
    for (verb, name, value), answer in zip(cases, answers, strict=True):
        begin = f"{name} is {' '.join(repr(value).split())}, but it must be "
        assert answer.startswith(begin), f"{verb}: {answer}"
        assert answer.endswith(f": write -e {name}=VALUE."), f"{verb}: {answer}"
