#!/usr/bin/env python3
"""Enqueue runs that wait, all in one batch, and watch them: ``scripts/burst.py 500`` against the sandbox.

A run of the sample task ``agent_run`` waits ten seconds, as for a language model. The API's key comes from the
environment, BACKEND_API_KEY, or from the sandbox's file.
"""

import argparse
import json
import os
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

SANDBOX_KEY = Path(__file__).parent.parent / ".secrets/sandbox/backend_api_key"
LARGEST_BATCH = 1000
INTERVAL = 0.5  # seconds between two questions
TIMEOUT = 120  # seconds from the request until it gives up
RUNNING, ENDED = {"STARTED", "PROGRESS"}, {"SUCCESS", "FAILURE", "REVOKED"}


def post(url: str, key: str, body: dict[str, Any]) -> Any:
    """Send a request to the API; return its answer."""
    headers = {"Content-Type": "application/json", "X-API-Key": key}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the user's own URL
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the API is on this machine
    with opener.open(request, timeout=10) as answer:
        return json.load(answer)


def main() -> None:
    """Exit 1 when a run does not succeed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, choices=range(1, LARGEST_BATCH + 1), metavar="RUNS", help="1 to 1000")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the API (http://127.0.0.1:8000)")
    arguments = parser.parse_args()
    key = os.environ.get("BACKEND_API_KEY") or (SANDBOX_KEY.read_text() if SANDBOX_KEY.exists() else "")
    batch = {"task": "agent_run", "tasks": [{"data": {}}] * arguments.runs}
    began = time.monotonic()
    ids = post(f"{arguments.url}/tasks/enqueue/batch", key.strip(), batch)["task_ids"]
    sys.stdout.write(f"{len(ids)} runs enqueued in {time.monotonic() - began:.2f} s\n")
    at_once, states = 0, Counter[str]()
    while sum(states[state] for state in ENDED) < len(ids) and time.monotonic() - began < TIMEOUT:
        time.sleep(INTERVAL)
        told = post(f"{arguments.url}/tasks/status", key.strip(), {"task_ids": ids})["tasks"]
        states = Counter(task.get("status", "UNKNOWN") for task in told)
        at_once = max(at_once, sum(states[state] for state in RUNNING))
    succeeded = states["SUCCESS"]
    sys.stdout.write(f"{succeeded} succeeded within {time.monotonic() - began:.1f} s, {at_once} of them at once\n")
    sys.exit(0 if succeeded == len(ids) else f"{len(ids) - succeeded} did not: {dict(states)}")


if __name__ == "__main__":
    main()
