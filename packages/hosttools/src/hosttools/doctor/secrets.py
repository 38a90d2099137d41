"""Secret files of the services."""

from __future__ import annotations

import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from hosttools import files
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, FILES, WARNING, Finding

URLS = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "REDIS_URL")
SECRETS = {*URLS, "TASK_SIGNING_KEY", "CONTROL_SIGNING_KEY", "BACKEND_API_KEY", "FLOWER_BASIC_AUTH"}
SECRETS |= {"DURABLE_SIGNING_KEY", "DURABLE_CONTROL_KEY", "DURABLE_SENTINEL_PASSWORD"}


@apart
def foreign_keys(app: str, services: list[str]) -> Iterator[Finding]:
    """Compare the keys that services sign and verify with to the operator's."""
    for name, what, page in (
        ("TASK_SIGNING_KEY", "its tasks become dead letters", "DeadLetters"),
        ("CONTROL_SIGNING_KEY", "it does not do what celery control says", "WorkersMissing"),
        ("DURABLE_SIGNING_KEY", "its tasks become dead letters", "DeadLetters"),
        ("DURABLE_CONTROL_KEY", "it does not do what celery control says", "WorkersMissing"),
    ):
        keys = {service: set(files.keys(f"/etc/{app}/secrets/{service}/{name}")) for service in services}
        for service, own in keys.items():
            if service != "flower" and own and keys["operator"] and not own & keys["operator"]:
                yield Finding(CRITICAL, f"{name} of {service} is not that of the operator: {what}", page, FILES)


@apart
def secrets(directory: Path, wanted: list[str], user: str) -> Iterator[Finding]:
    """Look at one service's secret files."""
    page = "UnitRestartLoop"
    try:
        group = pwd.getpwnam(user).pw_gid
    except KeyError:
        yield Finding(CRITICAL, f"the user {user} is gone", page, FILES)
        return
    for name in wanted:
        if not files.read(directory / name).strip():
            yield Finding(CRITICAL, f"the secret {directory / name} is missing or empty", page, FILES)
    for file in (directory, *directory.glob("*")):
        if not file.exists():
            continue
        seen, mode = file.stat(), stat.S_IMODE(file.stat().st_mode)
        if mode & 0o007:
            yield Finding(WARNING, f"everybody on the host may get at {file} (mode {mode:04o})", "drift", FILES)
        elif mode != (0o750 if file.is_dir() else 0o640) or (seen.st_uid, seen.st_gid) != (0, group):
            what = f"{file} has another owner or mode ({mode:04o}) than it was installed with"
            yield Finding(WARNING, what, "drift", FILES, suspect=True)
