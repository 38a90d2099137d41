"""The release, its settings and its secrets."""

import base64
import dataclasses
import hashlib
import pwd
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from hosttools import files, systemd
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, FACTS, FILES, UNITS, WARNING, Finding

URLS = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "REDIS_URL")
SECRETS = {*URLS, "TASK_SIGNING_KEY", "CONTROL_SIGNING_KEY", "BACKEND_API_KEY", "FLOWER_BASIC_AUTH"}
SECRETS |= {"DURABLE_SIGNING_KEY", "DURABLE_CONTROL_KEY", "DURABLE_SENTINEL_PASSWORD"}


def check(app: str, services: list[str], wanted: Sequence[str] = ()) -> Iterator[Finding]:
    """Look at the release, the settings and the secrets, which are ``wanted`` as SERVICE/NAME."""
    settings_file = Path(f"/etc/{app}/backend.env")
    if not files.read(settings_file):
        yield Finding(CRITICAL, f"the settings {settings_file} are missing or empty", "UnitRestartLoop", FILES)
    for name in re.findall(r"^(?:export )?(\w+)=", files.read(settings_file), re.MULTILINE):
        if name in SECRETS:
            what = f"{settings_file} sets {name}, which goes before the secret file of that name"
            yield Finding(CRITICAL, what, "drift", FILES, certain=True)
    live, platform = Path(f"/opt/{app}/backend"), Path(f"/opt/{app}/platform")
    listed = files.of_release(live)
    for needed in (
        "",
        ".complete",
        *filter(lambda name: (live / name).is_symlink(), [".env"]),
        *listed,
        "venv/bin/python",
    ):
        if not (live / needed).exists():
            what = f"the release is incomplete: {live / needed} is missing or leads nowhere"
            yield Finding(CRITICAL, what, "UnitRestartLoop", FILES, certain=True)
            break
    folders = {live / Path(name).parts[0] for name in listed}
    venvs = [place / name for place in (live, platform) for name in ("venv/lib", "venv/bin/python")]
    yield from closed([live, *sorted(folders), *venvs, settings_file])
    yield from packages(live)
    yield from tools(platform)
    for service in services:
        names = sorted(name.partition("/")[2] for name in wanted if name.startswith(f"{service}/"))
        user = app if service == "worker" else f"{app}-{service}"
        yield from secrets(Path(f"/etc/{app}/secrets/{service}"), names, user)
    yield from foreign_keys(app, services)
    for unit in Path("/etc/systemd/system").glob(f"{app}-*.service"):
        for secret in re.findall(r"^LoadCredential=[^:]+:(\S+)", files.read(unit), re.MULTILINE):
            if not secret.startswith(f"/etc/{app}/secrets/") and not files.read(secret).strip():
                what = f"the secret {secret} of {unit.stem} is missing or empty"
                yield Finding(CRITICAL, what, "UnitRestartLoop", FILES)
        yield from outdated(unit.stem, live, settings_file, files.read(unit))


@apart
def closed(places: list[Path]) -> Iterator[Finding]:
    """Name what the services must read and cannot, and the directories on the way there."""
    ways = [[*place.parents, *place.resolve().parents] for place in places if place.exists()]
    for place in dict.fromkeys([*sorted(parent for way in ways for parent in way), *places]):
        if place.exists() and not place.stat().st_mode & (0o001 if place.is_dir() else 0o004):
            what = f"{place} cannot be read by the services (mode {stat.S_IMODE(place.stat().st_mode):04o})"
            yield Finding(CRITICAL, what, "UnitRestartLoop", FILES, certain=True)


@apart
def outdated(unit: str, live: Path, settings_file: Path, content: str) -> Iterator[Finding]:
    """Look whether a service runs with the release, settings and secrets that are on the disk."""
    number = systemd.properties(unit, "MainPID").get("MainPID", "")
    process = Path(f"/proc/{number}")
    if number in ("", "0") or not process.exists():
        return
    runs = process / "cwd"
    # The console has releases of its own, which its unit names.
    named = re.search(r"^WorkingDirectory=(\S+)", content, re.MULTILINE)
    wanted = Path(named[1]) if named else live
    # A process that systemd is about to start is still in /.
    if runs.exists() and wanted.exists() and runs.resolve() not in (wanted.resolve(), Path("/")):
        what = f"{unit} runs release {runs.resolve().name}, but {wanted} is {wanted.resolve().name}: restart it"
        yield Finding(WARNING, what, "drift", UNITS, suspect=True)
    started = process.stat().st_mtime
    read = [settings_file, *map(Path, re.findall(r"^LoadCredential=[^:]+:(\S+)", content, re.MULTILINE))]
    for file in read:
        if file.exists() and file.stat().st_mtime > started + 1:
            what = f"{unit} runs with what {file} held before it was changed: restart it"
            yield Finding(WARNING, what, "drift", UNITS, suspect=True)


def facts(app: str) -> Iterator[dict[str, object]]:
    """Tell what must be the same on all hosts."""
    live = Path(f"/opt/{app}/backend")
    code = hashlib.sha256()
    for name in files.of_release(live):
        code.update(name.encode() + files.read(live / name).encode())
    names = "TASK_ROUTES DURABLE_TASK_TIME_LIMIT DURABLE_TASK_SOFT_TIME_LIMIT DURABLE_RESULT_EXPIRES ENVIRONMENT"
    known = files.settings(f"/etc/{app}/backend.env")
    # The digest of a long random key tells nothing about it.
    key = files.keys(f"/etc/{app}/secrets/operator/DURABLE_SIGNING_KEY")
    told = {f"the setting {name}": known.get(name) for name in names.split() if name in known}
    if live.exists():
        told["the application's code"] = code.hexdigest()[:12]
    if key:
        told["the task signing key"] = hashlib.sha256(key[0].encode()).hexdigest()[:12]
    yield {"severity": FACTS, "what": "", "runbook": "", "facts": told}


@apart
def tools(live: Path) -> Iterator[Finding]:
    """Look whether the platform's tools are whole: Flower, the console and the operator's commands."""
    if not live.is_symlink():
        what = f"the platform's tools are not installed, {live} is missing: site.yml installs them"
        yield Finding(CRITICAL, what, "drift", FILES, certain=True)
        return
    remedy = f"rm -r {live.resolve()} {live}; then site.yml installs the platform's tools again"
    if not (live / "venv/bin/python").exists():
        what = f"the platform's tools are incomplete: {live}/venv/bin/python is missing or leads nowhere: {remedy}"
        yield Finding(CRITICAL, what, "drift", FILES, certain=True)
        return
    for found in packages(live, "drift"):
        yield dataclasses.replace(found, what=f"{found.what}: {remedy}")


@apart
def packages(live: Path, page: str = "failed-deploy") -> Iterator[Finding]:
    """Look whether the packages that a lock names are whole: each has a list of its files and their sizes."""
    for place in live.glob("venv/lib/python3*/site-packages"):
        installed = {}
        for package in place.glob("*.dist-info"):
            name, _, version = package.name.removesuffix(".dist-info").partition("-")
            name = re.sub(r"[-_.]+", "-", name).lower()
            installed[name] = version
            record = files.lstat(package / "RECORD")
            for line in files.read(package / "RECORD").splitlines():
                file, content, size = line.rsplit(",", 2) if line.count(",") > 1 else (line, "", "")
                seen = files.lstat(place / file.strip('"'))
                if seen is None and not file.endswith(".pyc"):
                    what = f"{place / file} is missing, of the package {name}"
                    yield Finding(CRITICAL, what, page, FILES, certain=True)
                    break
                if seen is None or not size.isdigit():
                    continue
                # pip writes the list last.
                newer = record is not None and seen.st_mtime > record.st_mtime + 1
                if seen.st_size != int(size) or (newer and sha256(place / file.strip('"')) != content):
                    what = f"{place / file}, of the package {name}, was changed by hand"
                    yield Finding(WARNING, what, page, FILES, suspect=True)
                    break
        pinned = files.read(live / "requirements.txt")
        for name, version in re.findall(r"^([\w.-]+)(?:\[.*\])?==([^;\s]+)[^;\n]*$", pinned, re.MULTILINE):
            here = installed.get(re.sub(r"[-_.]+", "-", name).lower())
            if here is None:
                yield Finding(CRITICAL, f"the package {name} is missing in {place}", page, FILES, certain=True)
            elif here != version:
                what = f"the package {name} in {place} is {here}, the lock names {version}"
                yield Finding(WARNING, what, page, FILES, suspect=True)


def sha256(file: Path) -> str:
    """Return a file's digest as a list of a package's files has it."""
    told = hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest()
    return f"sha256={base64.urlsafe_b64encode(told).decode().rstrip('=')}"


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
