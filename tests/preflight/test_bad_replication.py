"""What is wrong with an inventory that has sentinels is rejected in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.preflight.cases import Case, preflight_errors

pytestmark = pytest.mark.timeout(600)

WEAK = "short"


def host(number: int, **variables: object) -> dict[str, Any]:
    """Return the variables of a host that replicates."""
    address = f"10.0.0.{number}"
    return {"private_address": address, "redis_bind": ["127.0.0.1", address], **variables}


CASES = {
    "one": Case(host(1), []),
    "two": Case(host(2), []),
    "weak": Case(host(3, sentinel_password=WEAK), ["redis_sentinel_password"], hidden=WEAK),
    "alone": Case(host(4, redis_bind=["127.0.0.1"]), ["redis_bind of alone", "private_address"]),
    "mark": Case(host(5, broker_unreplicated="perhaps"), ["broker_unreplicated", "perhaps", "refuse, mark"]),
    "wary": Case(
        host(6, redis_min_replicas_to_write=9), ["redis_min_replicas_to_write of wary is 9", "9 hosts", "lower it"]
    ),
    "own": Case(host(8, app_redis_variables={"CACHE": "data"}), ["app_redis_variables.CACHE is data", "sentinels"]),
    "piece": Case(
        host(9, app_redis_variables={"CACHE": "results.host"}), ["app_redis_variables.CACHE is results.host"]
    ),
    "warier": Case(host(7, broker_replicas_wanted=9), ["broker_replicas_wanted is 9", "8 replicas", "lower it"]),
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all cases at once."""
    return preflight_errors(CASES, tmp_path_factory.mktemp("inventory"), sentinels=("one", "two", "weak"))


@pytest.mark.parametrize("name", CASES)
def test_each_case(messages: dict[str, str], name: str) -> None:
    CASES[name].judge(messages[name])


def test_two_sentinels_are_too_few(tmp_path: Path) -> None:
    said = preflight_errors({"a": Case(host(1), []), "b": Case(host(2), [])}, tmp_path, sentinels=("a", "b"))
    assert "odd number of at least three" in said["a"].replace("\n", " ")


def test_each_needs_an_address(tmp_path: Path) -> None:
    cases = {name: Case(host(number), []) for number, name in enumerate("abc", 1)}
    del cases["c"].variables["private_address"]
    said = preflight_errors(cases, tmp_path, sentinels=("a", "b", "c"))
    assert "private_address" in said["a"]


def test_one_server_has_no_replicas(tmp_path: Path) -> None:
    said = preflight_errors({"a": Case({"broker_replicas_wanted": 1}, [])}, tmp_path)
    assert "broker_replicas_wanted is 1, but the broker has 0 replicas" in said["a"].replace("\n", " ")


def test_replicas_cannot_be_older_than_their_primary(tmp_path: Path) -> None:
    cases = {name: Case(host(number), []) for number, name in enumerate("abc", 1)}
    cases["c"].facts["distribution_version"] = "12"
    said = preflight_errors(cases, tmp_path, sentinels=("a", "b", "c"))
    assert "Debian 12 and 13" in said["a"]
