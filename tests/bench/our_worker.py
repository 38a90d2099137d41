"""The same tiny task in our application, with single guarantees taken away: ``BENCH_WITHOUT=ledger,delivery``."""

import os

import kombu

from app.agents.worker import celery_app
from celery_durable import scripts

without = os.environ.get("BENCH_WITHOUT", "").split(",")
if "delivery" in without:
    celery_app.finalize()
    celery_app.amqp.Connection = kombu.Connection
if "ledger" in without:
    scripts.ACKNOWLEDGE = "redis.call('LREM', KEYS[1], 1, ARGV[1])"
    scripts.ENQUEUE = "redis.call('LPUSH', KEYS[1], ARGV[1])"
    scripts._texts += [scripts.ACKNOWLEDGE, scripts.ENQUEUE]


@celery_app.task(name="tiny")
def tiny(number: int) -> int:
    """Do nothing, so that only the price of the queue is measured."""
    return number
