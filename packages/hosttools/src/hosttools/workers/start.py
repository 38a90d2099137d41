"""What would keep a worker from starting: tried as the worker's own user."""

import re
from pathlib import Path

from hosttools import process
from hosttools.masking import last_words

TIMEOUT = 20  # seconds for each command
# As pip sees it: markers judged, versions compared, nothing installed.
CHECK_PACKAGES = ["-m", "pip", "--isolated", "install", "--dry-run", "--quiet", "--disable-pip-version-check"]
CHECK_PACKAGES += ["--no-index", "--no-deps", "--require-hashes", "--requirement", "requirements.txt"]
CHECK_DEPENDENCIES = ["-m", "pip", "--isolated", "check", "--disable-pip-version-check"]
# A PING to what the secrets name, as a worker and without the application.
TRY_REDIS = """
import redis
from celery_durable.connection import broker_client, results_client
from durable_console.application import options

for part, client in (("queue", broker_client(options)), ("results", results_client(options))):
    try:
        client.ping()
    except redis.RedisError as error:
        address = client.connection_pool.connection_kwargs
        raise SystemExit(f"Redis for the {part} at {address.get('host')}:{address.get('port')}: {error}")
"""


def obstacle(prefix: str, user: str, secrets: list[str]) -> dict[str, str]:
    """Return what keeps a worker from starting on this host, its ``kind`` and a sentence; nothing when it could start.

    Kinds: secrets, settings, venv, release, password (refused by Redis), redis (not reached) and slow (nobody knows).
    """
    release, directory = Path(f"/opt/{prefix}/backend"), Path(f"/etc/{prefix}/secrets/worker")
    if not release.exists():
        return {"kind": "release", "says": f"{release} leads to no release"}
    for name in secrets:
        if not (directory / name).is_file() or not (directory / name).stat().st_size:
            return {"kind": "secrets", "says": f"the secret file {directory / name} is missing or empty"}
    return _not_loaded(prefix, user) or _not_connected(prefix)


def slow(complaint: str) -> dict[str, str]:
    """Return that nobody knows: what takes too long on a busy host is not broken."""
    return {"kind": "slow", "says": complaint}


def _not_loaded(prefix: str, user: str) -> dict[str, str]:
    release, settings = Path(f"/opt/{prefix}/backend"), f"/etc/{prefix}/backend.env"
    python, admin = str(release / "venv/bin/python"), f"/usr/local/sbin/{prefix}-admin"
    loaded = process.run(admin, "--as=worker", "--check", timeout=TIMEOUT)
    failed, errors = loaded.code, loaded.errors
    if failed == process.TIMED_OUT:
        return slow(errors)
    if failed not in (0, process.NOT_FOUND) and "Traceback" not in errors:
        sentence = " ".join(last_words(line) for line in errors.splitlines())
        return {"kind": "settings", "says": f"{settings} or a secret is refused: {sentence}"}
    environment = {
        "PATH": "/usr/bin:/bin",
        "SECRETS_DIRECTORY": f"/etc/{prefix}/secrets/worker",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for check in (CHECK_PACKAGES, CHECK_DEPENDENCIES):
        seen = process.run(python, *check, cwd=str(release), account=user, environment=environment, timeout=TIMEOUT)
        if seen.code == process.TIMED_OUT:
            return slow(seen.errors)
        if not seen.ok:
            return {"kind": "venv", "says": f"{release}/venv is broken: {last_words(seen.errors or seen.output)}"}
    if failed == process.NOT_FOUND:
        return {"kind": "settings", "says": f"{admin} is missing"}
    return _broken(errors) if failed else {}


def _broken(errors: str) -> dict[str, str]:
    """Judge the traceback of an application that cannot be imported."""
    file, line = re.findall(r'File "([^"]+)", line (\d+)', errors)[-1]
    kind = "venv" if "/venv/" in file else "release"
    return {"kind": kind, "says": f"the application cannot be loaded: {file}:{line}: {last_words(errors)}"}


def _not_connected(prefix: str) -> dict[str, str]:
    python = f"/opt/{prefix}/platform/venv/bin/python"
    command = [f"/usr/local/sbin/{prefix}-admin", "--as=worker", "--run", python, "-IBc", TRY_REDIS]
    tried = process.run(*command, timeout=TIMEOUT)
    errors = tried.errors
    if tried.ok:
        return {}
    if tried.code == process.TIMED_OUT:
        return slow(errors)
    refused = re.search("WRONGPASS|NOAUTH|NOPERM|invalid username-password", errors)
    return {"kind": "password" if refused else "redis", "says": last_words(errors)}
