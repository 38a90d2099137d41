"""The arithmetic from prices to hosts, with prices that are easy to count with."""

from dataclasses import replace

import pytest

from tests.bench.scaling.plan import CPU_BUSY, HOST_CPUS, HOST_GIB, SLOTS_BUSY, TASK_CPU, WORKER_SHARE, Prices, plan

PRICES = Prices(
    *(0.001, 0.001, 0.01),  # enqueue, poll, run
    *(96.0, 40.0),  # workers, slot
    *(1000.0, 6000.0, 0.0),  # broker, stores, results_poll
    *(0.001, 0.001),  # message, result
)
# At the peak, three times the average, one task a second.
ONE_A_SECOND = 86400 / 3


def test_little_is_done_by_two_hosts() -> None:
    need = plan(PRICES, 100, 20)
    assert (need.hosts, need.apis, need.slots) == (2, 2, 1)


def test_runs_at_once_follow_from_rate_and_length() -> None:
    need = plan(PRICES, ONE_A_SECOND, 30)
    assert need.rate == pytest.approx(1)
    assert need.running == pytest.approx(30)
    assert 30 / SLOTS_BUSY <= need.slots < 30 / SLOTS_BUSY + 1
    assert need.broker == pytest.approx(1 / 1000)
    assert need.results == pytest.approx(6 / 6000)


def test_memory_decides_where_runs_wait() -> None:
    need = plan(PRICES, 100 * ONE_A_SECOND, 20)
    room = HOST_GIB * 1024 * WORKER_SHARE - PRICES.workers
    assert (need.hosts - 1) * room < need.slots * PRICES.slot <= need.hosts * room
    assert need.memory == pytest.approx((need.hosts * 96 + need.slots * 40) / 1024)


def test_processors_decide_where_slots_are_small() -> None:
    need = plan(replace(PRICES, slot=0.1), 100 * ONE_A_SECOND, 20)
    busy = 100 * (PRICES.run + TASK_CPU)
    assert need.cpus == pytest.approx(busy)
    assert (need.hosts - 1) * HOST_CPUS * CPU_BUSY < busy <= need.hosts * HOST_CPUS * CPU_BUSY


def test_questions_cost_more_than_tasks() -> None:
    # A client asks about 20 s every 2 s and once more: 11 questions and a task, 1 ms each.
    assert plan(PRICES, 1000 * ONE_A_SECOND, 20).apis == 20  # 12 s a second, each process 60 % busy


def test_a_redis_that_would_be_full_is_shared_out() -> None:
    # 600 of the broker's 1,000 tasks a second fit in one; the states of 600 tasks take 60 % of the results.
    assert plan(PRICES, 600 * ONE_A_SECOND, 20).installations == 1
    assert plan(PRICES, 1500 * ONE_A_SECOND, 20).installations == 3
