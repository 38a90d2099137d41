"""Who is compared: how each worker is started, and what it promises."""

import sys
from dataclasses import dataclass, field

from tests.bench.performance.figures import ASYNCIO, EVERYSEC, GUIDE, PREFORK, THREADS
from tests.support import REPOSITORY

BENCH, BENCH_ARQ = (str(REPOSITORY / f".cache/{name}/bin/python") for name in ("bench", "bench-arq"))
OURS, REFERENCE, PEERS = "tests.bench.our_worker", "tests.bench.guide_worker", "tests.bench.peers"


@dataclass(frozen=True)
class Promises:
    """What a figure is worth."""

    acknowledged: str
    worker_dies: str
    limits: str
    revoked: str
    results: str = "1 h"


OURS_PROMISES = Promises(
    "after the result is stored",
    "run again when it is back, or within 5 s by another worker of the host, 20 s after the hard limit by other hosts",
    "soft and hard, a blocked one is killed",
    "also while it runs",
)
NO_LIMITS = Promises(OURS_PROMISES.acknowledged, OURS_PROMISES.worker_dies, "none", "only before it starts")


@dataclass(frozen=True)
class Side:
    """One worker on Redis servers of its own."""

    name: str
    module: str
    arguments: tuple[str, ...]  # of its Python
    slots: int
    promises: Promises
    python: str = sys.executable
    fsync: str = ""  # of a broker beside the results; without it one Redis has both, as these libraries' pages show it
    env: dict[str, str] = field(default_factory=dict)


def _celery(program: str, module: str, pool: str, slots: int) -> tuple[str, ...]:
    return ("-m", program, "-A", module, "worker", "--loglevel=info", f"--pool={pool}", f"--concurrency={slots}")


WAITING = (
    Side(
        GUIDE,
        REFERENCE,
        _celery("celery", REFERENCE, "prefork", 4),
        4,
        Promises(
            "at the end, of a killed child before its failure is stored",
            "run again after an hour, the visibility timeout",
            "soft and hard",
            "also while it runs",
        ),
    ),
    Side(PREFORK, OURS, _celery("celery_durable", OURS, "prefork", 4), 4, OURS_PROMISES, fsync="always"),
    Side(THREADS, OURS, _celery("celery_durable", OURS, "threads", 200), 200, NO_LIMITS, fsync="always"),
    Side(ASYNCIO, OURS, _celery("celery_durable", OURS, "asyncio", 500), 500, OURS_PROMISES, fsync="always"),
    Side(
        "dramatiq",
        f"{PEERS}.dramatiq_worker",
        ("-m", "dramatiq", f"{PEERS}.dramatiq_worker", "--processes=2", "--threads=100"),
        200,
        Promises(
            "after the result is stored",
            "run again by another worker, after 60 s without a heartbeat",
            "an exception in its thread; a blocked one goes on",
            "no",
        ),
        python=BENCH,
    ),
    Side(
        "arq",
        f"{PEERS}.arq_worker",
        ("-m", "arq", f"{PEERS}.arq_worker.WorkerSettings"),
        500,
        Promises(
            "with its result, in one transaction",
            "run again 10 s after the time limit: 70 s after it started",
            "cancelled; a blocked one goes on, and all others wait",
            "also while it runs",
        ),
        python=BENCH_ARQ,
        env={"BENCH_SLOTS": "500"},
    ),
    Side(
        "taskiq",
        f"{PEERS}.taskiq_worker",
        ("-m", "taskiq", "worker", f"{PEERS}.taskiq_worker:broker", "--workers=2", "--max-async-tasks=250"),
        500,
        Promises(
            "after the result is stored",
            "run again after 10 min, as is one that runs longer",
            "cancelled; a blocked one goes on, and all others wait",
            "no",
        ),
        python=BENCH,
    ),
)
NOTHING = (
    *WAITING,
    Side(EVERYSEC, OURS, _celery("celery_durable", OURS, "prefork", 4), 4, OURS_PROMISES, fsync="everysec"),
)
