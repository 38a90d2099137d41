"""A worker's process that is forked while a thread of its parent writes a log line."""

import subprocess
import sys

# A stream that takes its time, as a full pipe to the journal does: nearly each fork falls into a line.
FORKING = """
import io, logging, os, signal, sys, threading, time
from celery_durable.worker import forks

class Slow(io.RawIOBase):
    def writable(self):
        return True
    def write(self, data):
        time.sleep(0.02)
        return len(data)

stream = io.TextIOWrapper(io.BufferedWriter(Slow()), write_through=True, line_buffering=True)
logging.basicConfig(stream=stream, level="INFO")

def write():
    while True:
        logging.info("a line")

if "hold" in sys.argv:
    forks.install()
    forks.install()
threading.Thread(target=write, daemon=True).start()
for _ in range(10):
    time.sleep(0.03)
    pid = os.fork()
    if not pid:
        signal.alarm(5)
        logging.info("a line of the child")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit("a child has not got its line out")
logging.info("a line of the parent")
"""


def forking(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FORKING, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_child_can_write_although_its_parent_was_writing() -> None:
    ended = forking("hold")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_python_alone_does_not_care_for_it() -> None:
    """Else celery_durable.worker.forks is not needed any more."""
    assert "has not got its line out" in forking().stderr
