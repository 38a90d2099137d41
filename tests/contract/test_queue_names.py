"""Which names queues may have is decided alike everywhere, and routes mean the same to Celery, API and Redis' rules."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st

from app.agents.config import celery_config
from app.settings import Settings, get_settings
from celery_durable import keys, queue_names
from celery_durable.aio.publisher import queue_of
from tests.support import REPOSITORY, load_plugin

inventory = load_plugin("plugins/filter/inventory.py")
RULES = yaml.safe_load((REPOSITORY / "roles/stack/vars/main/redis_users.yml").read_text())
words = st.text(st.sampled_from("abz_.:-*~ %09AZ\n\x00é#@"), max_size=12)
taken = st.sampled_from([*queue_names.TAKEN, *queue_names.TAKEN_PREFIXES, *queue_names.TAKEN_SUFFIXES])
names = st.one_of(words, st.builds("{}{}".format, taken, words), st.builds("{}{}".format, words, taken), st.text())


@settings(deadline=None)
@given(names)
def test_inventory_and_settings_decide_alike(name: str) -> None:
    allowed = queue_names.is_queue_name(name)
    assert inventory.is_queue_name(name) == allowed
    assert bool(inventory.queue_errors({"task": name}, [])) != allowed
    try:
        Settings(task_routes={"task": name})
    except ValueError:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize(
    "key",
    sorted(
        {value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str) and "\n" not in value}
    ),
)
def test_no_key_of_ours_names_a_queue(key: str) -> None:
    assert not queue_names.is_queue_name(key)
    assert not queue_names.is_queue_name(f"{key}x") or not key.endswith(":")


def test_no_key_of_redis_rules_names_a_queue() -> None:
    """Whoever keeps something new in the broker adds its name, or no inventory could be told from a mistake."""
    rules = json.dumps(RULES["__stack_user_rules"]) + json.dumps(RULES["__stack_question_rules"])
    for key in set(re.findall(r"[~]([A-Za-z_][A-Za-z0-9_.:*-]*)", rules)) - {"celery"}:
        assert not queue_names.is_queue_name(key.replace("*", "x")), key


ROUTES: list[dict[str, Any]] = [
    {"app.a": "slow"},
    {"app.*": "slow"},
    {"app.*": {"queue": "slow"}, "app.a": {"queue": "fast"}},
    {"*.a": "one", "app.*": "two"},
    {"*": "all"},
    {"app.?": "slow"},
]


@pytest.mark.parametrize("routes", ROUTES, ids=map(str, range(len(ROUTES))))
@pytest.mark.parametrize("task", ["app.a", "app.b", "app.b.c", "other.a", "other"])
def test_the_api_sends_a_task_where_celery_would(
    routes: dict[str, Any], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASK_ROUTES", json.dumps(routes))
    get_settings.cache_clear()
    try:
        app = Celery()
        app.conf.update(celery_config(get_settings()))
        route = app.amqp.router.route({}, task)
        assert queue_of(app, task) == route["queue"].name == inventory.queue_of_task(routes, task)
        # What Redis' rules are made from.
        assert {queue_of(app, task)} <= {"celery", *inventory.route_queues(routes)} == set(get_settings().all_queues)
    finally:
        get_settings.cache_clear()


def test_a_queue_that_only_a_pool_names_is_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUES", "celery,slow")
    monkeypatch.setenv("TASK_ROUTES", '{"a": "fast"}')
    assert Settings().all_queues == ["celery", "fast", "slow"]


@pytest.mark.parametrize(
    ("routes", "pools", "word"),
    [
        ({"a": "slow"}, [{"queues": ["slow"]}, {}], ""),
        ({"a": "slow"}, [{"queues": ["slow"]}], "takes from the queue 'celery'"),
        ({}, [{"queues": ["slow"]}], "takes from the queue 'celery'"),
        ({"*": "slow"}, [{"queues": ["slow"]}], ""),
        ({"a": "slow"}, [], ""),  # workers are elsewhere
        ({"a": "slow"}, [{}], "no pool takes"),
        ({"a": "celery"}, [{"name": "a"}], ""),
        ({"a": {"queue": "slow"}}, [{"queues": ["fast"]}], "no pool takes"),
        ({}, [{"queues": ["a b"]}], "celery_worker_pools names the queue 'a b'"),
        ({"a": {"queue": "slow", "priority": 3}}, [], "task_routes names"),
    ],
)
def test_routes_go_to_queues_that_a_pool_takes(routes: dict[str, Any], pools: list[dict[str, Any]], word: str) -> None:
    assert word in " ".join(inventory.queue_errors(routes, pools))
    assert bool(word) == bool(inventory.queue_errors(routes, pools))
