"""Run Celery's t/integration on the platform, and what fails there on plain Celery: ``python -m tests.compat.run``.

Arguments are those of FILES to run, all without.
It exits with 1 when a test passes on plain Celery and fails on the platform, unless EXCEPTIONS gives the reason.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from fnmatch import fnmatchcase
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree as ET

import redis
import yaml

from celery_durable.testing import free_port
from tests.support import REPOSITORY, Program

# Test (a pattern of its name) -> why the platform differs. A row that nothing needs any more fails the run.
INSPECT, TASKS = "t/integration/test_inspect.py::test_Inspect", "t/integration/test_tasks.py"
LATE = "a task is acknowledged at its end"
INSIDE = "it looks into its worker, which it wants in its own process"
STAMPING = "t/integration/test_canvas.py::test_stamping_mechanism"
EXCEPTIONS: dict[str, str] = {
    f"{STAMPING}::test_task_received_has_access_to_stamps": INSIDE,
    f"{STAMPING}::test_linking_stamped_sig": INSIDE,
    f"{STAMPING}::test_err_linking_stamped_sig": INSIDE,
    f"{INSPECT}::test_active": LATE,
    f"{INSPECT}::test_query_task": LATE,
    f"{INSPECT}::test_stats": INSIDE,
    f"{INSPECT}::test_hello_stamps_received_revoked_ids_locally": INSIDE,
    f"{TASKS}::test_tasks::test_send_task_without_ignore_result_*": INSIDE,
    f"{TASKS}::test_tasks::test_revoked_by_headers_simple_canvas": INSIDE,
    f"{TASKS}::test_task_replacement::test_replaced_task_nesting_level_*": INSIDE,
    f"{TASKS}::test_task_replacement::test_replaced_task_nesting_chain": INSIDE,
    f"{TASKS}::test_task_redis_result_backend::test_retry_preserves_ignore_result_*": INSIDE,
    f"{TASKS}::test_trace_log_arguments::*": INSIDE,
    f"{TASKS}::test_signal_bound_method_receivers::*": INSIDE,
    f"{TASKS}::test_tasks::test_request_time_limits_none_when_not_configured": "each task has a time limit",
}
# Files about other brokers and backends, or about parts of Celery that no worker and no queue takes part in.
FILES = (
    "canvas",
    "tasks",
    "group_chains",
    "inspect",
    "redis_backend",
    "request_backend_down",
    "serialization",
    "connection_recovery",
)


def suite(directory: Path) -> None:
    """Put the suite of the installed Celery below ``directory``; pip checks the digest that our lock file has."""
    lock = (REPOSITORY / "requirements/app.txt").read_text()
    (entry,) = re.findall(
        rf"^celery(?:\[\w+\])?=={re.escape(version('celery'))} .*?(?=^\S)", lock, re.MULTILINE | re.DOTALL
    )
    requirement = directory / "celery.txt"
    requirement.write_text(entry.replace("[redis]", ""))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=celery", f"--dest={directory}"]
    subprocess.run([*pip, "--require-hashes", f"--requirement={requirement}"], check=True)
    (archive,) = directory.glob("celery-*.tar.gz")
    shutil.unpack_archive(archive, directory)
    (unpacked,) = (path for path in directory.glob("celery-*") if path.is_dir())
    (unpacked / "t").rename(directory / "t")


def rules(directory: Path) -> dict[str, list[str]]:
    """Return what redis.conf of each instance says about users, as the roles write it."""
    command = [
        "ansible-playbook",
        "-i",
        "localhost,",
        "playbooks/containers/kubernetes.yml",
        "-e",
        "@deploy/kubernetes/base-variables.yml",
    ]
    subprocess.run(
        [*command, "-e", f"kubernetes_directory={directory}"], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL
    )
    files = {"broker": "typesafe-secrets-redis-broker", "results": "typesafe-secrets-redis"}
    return {
        part: re.findall(r"^user .*$", (directory / "secret-files" / name / "redis.conf").read_text(), re.MULTILINE)
        for part, name in files.items()
    }


# The suite's user: whose rights it has in each instance, and more. It looks at keys, and empties queues.
SUITE = {
    "broker": ("operator", "(~celery ~accepted ~t_* +@read +@write)"),
    "results": ("worker", "(%R~celery-task* +@read)"),
}


class Redis:
    """One instance: the platform's users, one for the suite, and a default user without limits for what it looks up."""

    def __init__(self, directory: Path, users: list[str], password: str) -> None:
        """Start it with ``users``, lines of redis.conf whose passwords are replaced."""
        directory.mkdir()
        self.port = free_port()
        # Redis 7.0 does not know the one command; the role leaves it out, too.
        lines = [re.sub(r"#[0-9a-f]{64}", f">{password}", line).replace(" +client|setinfo", "") for line in users]
        lines = [line for line in lines if not line.startswith("user default")]
        whose, more = SUITE[directory.name]
        lines += [f"{line} {more}".replace(whose, "suite", 1) for line in lines if line.startswith(f"user {whose} ")]
        config = directory / "redis.conf"
        config.write_text("\n".join([f"port {self.port}", "bind 127.0.0.1", 'save ""', f"dir {directory}", *lines, ""]))
        self.program = Program(["redis-server", str(config)], directory / "redis.log")
        self.program.wait_for_output("Ready to accept connections")

        for script in known_scripts().values():
            redis.Redis(port=self.port).script_load(script)

    def url(self, database: int, login: str = "") -> str:
        """Return its URL; ``login`` is user:password@."""
        return f"redis://{login}127.0.0.1:{self.port}/{database}"


def known_scripts() -> dict[str, str]:
    """Return the Lua that a release loads into Redis, by its digest."""
    command = [sys.executable, "-m", "durable_console.known_scripts", "app"]
    found = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE)
    scripts: dict[str, str] = json.loads(found.stdout)
    return scripts


def outcomes(
    directory: Path, name: str, environment: dict[str, str], tests: list[str], *options: str
) -> dict[str, str]:
    """Run these files or tests; return passed, failed or skipped for each test. What fails runs again, file by file.

    A test that has failed keeps its results, and so the subscriptions to them, which tests of other files count.
    """
    report = directory / f"{name}.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "celery.contrib.pytest",
        f"--junitxml={report}",
        "--override-ini=python_classes=test_*",
        f"--override-ini=cache_dir={directory}/{name}",
    ]
    found: dict[str, str] = {}

    def run(some: list[str]) -> None:
        with (directory / f"{name}.log").open("a") as log:
            subprocess.run(
                [*command, *options, *some],
                cwd=directory,
                env={**os.environ, **environment},
                stdout=log,
                check=False,
            )
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 - written by the line above
            states = {child.tag for child in case}
            state = "failed" if states & {"failure", "error"} else "skipped" if "skipped" in states else "passed"
            module, _, group = str(case.get("classname")).removeprefix("t.integration.").partition(".")
            found["::".join(filter(None, (f"t/integration/{module}.py", group, case.get("name"))))] = state

    run(tests)
    failed = sorted(test for test, state in found.items() if state == "failed")
    for _, of_file in groupby(failed, key=lambda test: test.partition("::")[0]):
        run([*of_file])
    return found


def main() -> int:
    """Compare and print; the directory with both logs stays when something differs."""
    directory = Path(tempfile.mkdtemp(prefix="compat-"))
    suite(directory)
    password = secrets.token_hex(16)
    users = rules(directory / "rendered")
    servers = {part: Redis(directory / part, users[part], password) for part in users}
    broker, results = servers["broker"], servers["results"]
    key, control = secrets.token_hex(32), secrets.token_hex(32)
    shared = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(results.port), "PYTHONPATH": f"{directory}:{REPOSITORY}"}

    def platform(user: str) -> dict[str, str]:
        login = f"{user}:{password}@"
        return {
            "CELERY_BROKER_URL": broker.url(0, login),
            "CELERY_RESULT_BACKEND": results.url(0, login),
            "TASK_SIGNING_KEY": key,
            "CONTROL_SIGNING_KEY": control,
        }

    try:
        own = platform("suite")
        workers = {f"WORKER_{name}": value for name, value in platform("worker").items()}
        environment = {**shared, **own, **workers, "WORKER_LOG": str(directory / "worker.log")}
        environment |= {"TEST_BROKER": own["CELERY_BROKER_URL"], "TEST_BACKEND": own["CELERY_RESULT_BACKEND"]}
        files = [f"t/integration/test_{file}.py" for file in sys.argv[1:] or FILES]
        ours = outcomes(directory, "platform", environment, files, "-p", "tests.compat.plugin")
        failed = sorted(test for test, state in ours.items() if state == "failed")
        # Results are in database 0, into which the suite looks.
        environment = {**shared, "TEST_BROKER": broker.url(5), "TEST_BACKEND": results.url(0)}
        plain = outcomes(directory, "plain", environment, failed) if failed else {}
    finally:
        for server in servers.values():
            server.program.stop(signal.SIGKILL)
    worse = [test for test in failed if plain.get(test) == "passed"]
    unexplained = [test for test in worse if not any(fnmatchcase(test, pattern) for pattern in EXCEPTIONS)]
    unused = [pattern for pattern in EXCEPTIONS if not any(fnmatchcase(test, pattern) for test in failed)]
    passed = list(ours.values()).count("passed")
    report = {
        "passed": passed,
        "failed": len(failed),
        "also_failed_on_plain_celery": len(failed) - len(worse),
        "explained": len(worse) - len(unexplained),
        "unexplained": unexplained,
        "unused_exceptions": [] if sys.argv[1:] else unused,
    }
    print(yaml.safe_dump({**report, "logs": str(directory)}, sort_keys=False))  # noqa: T201 - its answer
    return 1 if unexplained or report["unused_exceptions"] or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
