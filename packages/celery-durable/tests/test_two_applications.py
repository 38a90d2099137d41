"""Two applications in one process, each with a broker, keys and limits of its own.

Their workers run one after the other: Celery has one event loop for the workers of a process.
"""

import json
import sys
from pathlib import Path

import pytest

from celery_durable import keys
from celery_durable.metrics import FIGURES, SEPARATOR, WORKERS
from celery_durable.signing import FORGED
from tests.support import Program, Stack

pytestmark = pytest.mark.integration

PROGRAM = """
import sys
from celery import Celery
from celery.contrib.testing.worker import start_worker
import celery_durable
from celery_durable.options import Options

def make(name, broker, results, **options):
    app = Celery(name, broker=broker, backend=results, set_as_current=False)
    celery_durable.install(app, Options(**options))

    @app.task(name="own", shared=False)
    def own(text):
        return name + text

    return app, own

def worker(app):
    return start_worker(app, pool="solo", perform_ping_check=False, hostname=f"{app.main}@here")

keys = {"signing_keys": (b"1" * 32,), "control_keys": (b"3" * 32,)}
first, of_first = make("first", *sys.argv[1:3], message_limit=4096, **keys)
second, of_second = make("second", *sys.argv[3:5], signing_keys=(b"2" * 32,))
plain = Celery("plain", broker=sys.argv[1], backend=sys.argv[2], set_as_current=False)

sent = of_first.delay("!"), of_second.delay("?"), of_second.delay("x" * 9000)
try:
    of_first.delay("x" * 9000)
except ValueError as error:
    print(type(error).__name__)
# Signed with the key of the other one, and with none.
with second.connection_for_write(url=sys.argv[1]) as connection:
    of_second.apply_async(("forged",), connection=connection)
plain.send_task("own", ("unsigned",))
print(type(plain.connection().transport).__module__)
with worker(first):
    print(sent[0].get(timeout=20))
    first.control.revoke("revoked")
    print(of_first.delay("+").get(timeout=20))
with worker(second):
    print(sent[1].get(timeout=20), len(sent[2].get(timeout=20)))
with worker(first):
    print(of_first.delay("again").get(timeout=20))
"""


def test_each_has_its_own_broker_keys_limits_metrics_and_leases(stack: Stack, tmp_path: Path) -> None:
    urls = [stack.redis.url(database) for database in range(4)]
    program = Program([sys.executable, "-c", PROGRAM, *urls], tmp_path / "two.log", {})
    assert program.process.wait(90) == 0, program.output()
    printed = [line for line in program.output().splitlines() if not line.startswith("[")]
    assert printed[:2] == ["MessageTooLargeError", "kombu.transport.redis"]
    assert printed[2:] == ["first!", "first+", "second? 9006", "firstagain"]
    first, second = stack.redis.client(0), stack.redis.client(2)
    for broker, name, runs in ((first, "first", 3), (second, "second", 2)):
        assert broker.hkeys(WORKERS) == [f"{name}@here"]
        assert {keys.node_of(str(lease)) for lease in broker.zrange(keys.LEASES, 0, -1)} == {f"{name}@here"}
        assert broker.hget(FIGURES, f"ended{SEPARATOR}own{SEPARATOR}succeeded") == str(runs)
        assert not broker.llen("celery")
        assert not broker.keys(f"{keys.OWNER}*")
    reasons = [json.loads(letter)["reason"] for letter in first.lrange(keys.DEAD_LETTERS, 0, -1)]
    assert reasons == [FORGED, FORGED]
    assert second.llen(keys.DEAD_LETTERS) == 0
    assert first.zrange("unacked_revoked", 0, -1) == ["id:revoked"]
    assert second.zrange("unacked_revoked", 0, -1) == []
