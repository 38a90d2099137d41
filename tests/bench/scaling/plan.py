"""From prices to the number of hosts."""

import math
from dataclasses import dataclass

from tests.bench.scaling.costs import REPORTS

# What the worked example assumes; everything else in it is measured.
PEAK = 3.0  # the busiest hour against the day's average
SLOTS_BUSY = 0.7  # share of the slots that may be busy at the peak
CPU_BUSY = 0.6  # share of a processor that may be busy at the peak
REDIS_BUSY = 0.7  # share of what a Redis can do that it may do at the peak
POLL_SECONDS = 2.0  # a client asks for the status so often until its task has ended
TASK_CPU = 0.25  # CPU seconds of the task's own work, for each run
# Memory of the task's own libraries and data in MiB, for each slot; threads share the libraries.
TASK_MIB = {"prefork": 20.0, "threads": 5.0}
HOST_CPUS, HOST_GIB = 4, 8
# Workers on a host: all threads of one share a processor.
HOST_WORKERS = {"prefork": 1, "threads": HOST_CPUS}
WORKER_SHARE = 0.5  # celery_worker_memory_max
EXAMPLES = ((10_000, 20), (100_000, 20), (1_000_000, 10), (1_000_000, 30), (10_000_000, 20), (100_000_000, 5))


@dataclass(frozen=True)
class Prices:
    """What the worked example is made from; seconds are CPU seconds, sizes MiB."""

    enqueue: float  # of an API process, for each task
    poll: float  # the same for each question about a task
    run: float  # of a worker for each run, the task's own work not counted
    workers: float  # memory of a host's workers without slots
    slot: float  # memory of each slot with what the task itself takes
    broker: float  # tasks a second of a broker that is full
    stores: float  # states of tasks a second of a full Redis for results
    results_poll: float  # of the results' Redis for each question
    message: float  # memory of a waiting task
    result: float  # memory of a result


@dataclass(frozen=True)
class Plan:
    """What a load needs at its peak."""

    rate: float  # tasks a second
    running: float  # tasks that run at once
    slots: int
    hosts: int  # with workers
    cpus: float  # of them, busy with tasks
    memory: float  # GiB of them, taken by slots
    apis: int  # API processes
    broker: float  # share of what it takes
    results: float
    installations: int  # each with a broker and results of its own
    kept: float  # GiB of results
    waiting: float  # MiB of tasks, when no worker takes any for ten minutes


def plan(prices: Prices, tasks_a_day: float, seconds: float) -> Plan:
    """Return what so many tasks a day of that length need; never less than two hosts or API processes."""
    rate = tasks_a_day / 86400 * PEAK
    running = rate * seconds
    slots = math.ceil(running / SLOTS_BUSY)
    polls = seconds / POLL_SECONDS + 1
    cpus = rate * (prices.run + TASK_CPU)
    room = HOST_GIB * 1024 * WORKER_SHARE - prices.workers
    hosts = max(2, math.ceil(slots * prices.slot / room), math.ceil(cpus / (HOST_CPUS * CPU_BUSY)))
    apis = max(2, math.ceil(rate * (prices.enqueue + polls * prices.poll) / CPU_BUSY))
    memory = (hosts * prices.workers + slots * prices.slot) / 1024
    broker = rate / prices.broker
    results = rate * ((2 + REPORTS) / prices.stores + polls * prices.results_poll)
    return Plan(
        *(rate, running, slots, hosts, cpus, memory, apis, broker, results),
        math.ceil(max(broker, results) / REDIS_BUSY),
        rate * 3600 * prices.result / 1024,
        rate * 600 * prices.message,
    )
