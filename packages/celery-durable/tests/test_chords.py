"""Celery's commands for chords may be executed twice."""

from typing import Any

import pytest
import redis
from celery.backends.redis import CHORD_PART_RETURN_LUA  # type: ignore[attr-defined]

from celery_durable.testing import RedisServer
from celery_durable.worker.chords import ChordClient

pytestmark = pytest.mark.integration


def test_a_claim_whose_answer_was_lost_is_ours_and_nobody_elses(redis_server: RedisServer) -> None:
    pool = redis.ConnectionPool.from_url(redis_server.url(1))
    client = ChordClient(connection_pool=pool)
    count: Any = client.register_script(CHORD_PART_RETURN_LUA)
    keys = [f"celery-taskset-meta-1.{letter}" for letter in "jtsd"] + ["celery-taskset-meta-1", "claim"]
    client.set(keys[2], 1)

    def claimed(token: str) -> int:
        return int(count(keys=keys, args=["part", "result", 1, 0, 0, 0, 6, token])[3])

    assert [claimed("ours"), claimed("ours"), claimed("other"), claimed("ours")] == [1, 1, 0, 1]
    client.set("claim", "done")
    assert claimed("ours") == 0
