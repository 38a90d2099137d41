"""Gives each Redis the scripts of this release, and again after its restart.

``python -m durable_console.script_keeper [DIRECTORY]``, the release's, for containers; on hosts systemd does it
(roles/redis). Reads its URLs from SECRETS_DIRECTORY. Its user may load scripts and run none.
"""

import logging
import os
import sys
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from durable_console import known_scripts

logger = logging.getLogger(__name__)

URLS = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
# Seconds between two looks; for so long clients wait after a restart of Redis. And for an answer.
INTERVAL = 1.0
TIMEOUT = 2.0


def load(client: redis.Redis, known: dict[str, str]) -> int:
    """Load what Redis lacks; return how many that were.

    Raises:
        redis.exceptions.RedisError: it does not answer, or denies it.
    """
    missing = [digest for digest, there in zip(known, client.script_exists(*known), strict=True) if not there]
    for digest in missing:
        client.script_load(known[digest])
    return len(missing)


def main() -> None:
    """Look after each Redis without end."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    known = known_scripts.known(*map(Path, sys.argv[1:2]))
    secrets, heartbeat = Path(os.environ["SECRETS_DIRECTORY"]), Path(os.environ["WORKER_HEARTBEAT_FILE"])
    clients = {
        name: redis.Redis.from_url(
            (secrets / name).read_text().strip(),
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        for name in URLS
    }
    said: dict[str, str] = {}
    while True:
        for name, client in clients.items():
            try:
                count = load(client, known)
                state = f"The Redis of {name} has got {count} scripts" if count else said.get(name, "")
            except redis.RedisError as error:
                state = f"The Redis of {name} gets no scripts: {error}"
            if state != said.get(name):
                logger.info("%s", state)
                said[name] = state
        heartbeat.touch()
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main()
