"""Whatever an inventory says, it is rejected in one sentence, or everything that comes of it is valid."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.inventories import generated
from tests.inventories.judge import judge, judge_error, run, run_replicated
from tests.support import REPOSITORY

pytestmark = pytest.mark.timeout(1800)
# Of each shape and seed; make nightly says INVENTORIES=N. Ansible takes about a second for each.
SAMPLE = {"plain": 6, "cluster": 4, "replicated": 1}
ROLES = {"plain": generated.PLAIN, "cluster": generated.CLUSTER}
# A run of Ansible takes so many hosts in one process within its time.
AT_ONCE = 25
# A random one finds something now and then: make nightly has it, and a change of something else need not wait for that.
SEEDS = {"fixed": 20} | ({"random": random.SystemRandom().randrange(2**32)} if "INVENTORIES" in os.environ else {})


def check(shape: str, seed: int, cases: dict[str, dict[str, Any]], directory: Path) -> None:
    """Run the cases and fail with all that are neither rejected nor valid."""
    outcomes = run(cases, directory, cluster=shape == "cluster")
    wrong = []
    for name, variables in cases.items():
        (folder := directory / name).mkdir()
        wrong += [f"{variables}: {problem}" for problem in judge(variables, outcomes[name], folder)]
    assert wrong == [], f"seed {seed}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("shape", ROLES)
@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_a_sample(shape: str, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    left = int(os.environ.get("INVENTORIES", SAMPLE[shape]))
    while left > 0:
        (folder := tmp_path / str(left)).mkdir()
        check(shape, seed, generated.cases(ROLES[shape], min(left, AT_ONCE), chance), folder)
        left -= AT_ONCE


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_a_sample_with_replicas_sentinels_and_two_balancers(seed: int, tmp_path: Path) -> None:
    """Each is an inventory of three hosts by itself: a host's rules look at the others."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    number = int(os.environ.get("INVENTORIES", SAMPLE["replicated"] * 5)) // 5
    # What one host alone has, and then all of them: ports, names and secrets must not differ in the dark.
    cases = generated.cases(generated.REPLICATED, number, chance)
    wrong = []
    for index, (name, variables) in enumerate([("right", {}), *cases.items()]):
        (folder := tmp_path / name).mkdir()
        alone = index % 3 == 2
        outcomes = run_replicated(variables, folder, alone=alone)
        # An error on one host stops the run for all.
        rejected = [outcome for outcome in outcomes.values() if outcome.errors]
        for host, outcome in outcomes.items():
            if outcome in rejected or not rejected:
                (place := folder / host).mkdir()
                where = "one host" if alone else "all hosts"
                wrong += [f"{variables} of {where}: {problem}" for problem in judge(variables, outcome, place)]
        assert variables or not rejected, rejected
    assert wrong == [], f"seed {seed}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("shape", ROLES)
def test_what_is_rejected_for_its_form_is_rejected_in_one_sentence(shape: str) -> None:
    """Every value of every option, without Ansible: thousands."""
    rejected = 0
    for variables in generated.every_value(ROLES[shape]):
        if errors := generated.form_errors(variables):
            rejected += 1
            assert judge_error(variables, errors) == [], variables
            (sentence,) = errors
            assert sentence.endswith((".", "?")), sentence
    assert rejected > 1000


@pytest.mark.parametrize("role", generated.CLUSTER)
def test_every_default_has_a_right_form(role: str) -> None:
    known = generated.options((role,))
    usual = {
        name: value for name, value in generated.defaults(role).items() if name in known and "{{" not in str(value)
    }
    assert generated.inventory.value_errors(usual, generated.ROLES) == []


def test_the_repositorys_own_inventories_are_right() -> None:
    known = generated.inventory.specified(generated.ROLES)
    for file in [*REPOSITORY.glob("inventories/**/*.yml"), *REPOSITORY.glob("molecule/*/molecule.yml")]:
        found = generated.set_in(file)
        names = {str(name) for name, _ in found}
        assert generated.inventory.name_errors(names, generated.ROLES) == [], file
        if file.name != "molecule.yml":  # some of their scenarios are of a role alone
            assert generated.inventory.ignored_errors(names) == [], file
        for name, value in found:
            if name in known and value is not None and "{{" not in str(value) and "$" not in str(value):
                assert generated.inventory.value_errors({name: value}, generated.ROLES) == [], file


@pytest.mark.parametrize("name", generated.inventory.RENAMED)
def test_a_previous_name_is_rejected_with_the_present_one(name: str) -> None:
    present = generated.inventory.RENAMED[name]
    (sentence,) = generated.inventory.name_errors([name], generated.ROLES)
    assert sentence == f"The inventory sets {name}, which is called {present} now: rename it."
    assert generated.inventory.name_errors([present], generated.ROLES) == []


def test_secrets_are_in_no_sentence() -> None:
    for name, option in generated.options(generated.CLUSTER).items():
        if option.get("no_log") and option["type"] == "str":
            for value in ("my\nsecret", ["my secret"], "my\x07secret"):
                assert "secret'" not in " ".join(generated.form_errors({name: value}))


@pytest.mark.parametrize("option", generated.inventory.OF_INSTANCES)
def test_what_is_ignored_is_what_each_instance_has(option: str) -> None:
    roles = yaml.safe_load((REPOSITORY / "roles/stack/vars/main/roles.yml").read_text())
    for instances in roles["__stack_redis_instances"].values():
        assert all(option.removeprefix("redis_") in instance for instance in instances)
