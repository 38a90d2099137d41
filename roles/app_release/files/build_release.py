#!/usr/bin/env python3
"""Pack a release on the controller: the application, its locked requirements, their wheels and a list of them all.

A release's name is a digest of its source, so the same input is never built twice and a host can tell a new release
from the one it has. Wheels are fetched for the host's Python, not for the controller's; its version ends the name.
"""

import argparse
import fcntl
import fnmatch
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

# Debian 12 has glibc 2.36. Wheels are tagged with the oldest glibc they run on; 2.17 is manylinux2014's.
GLIBC_MINOR_VERSIONS = range(17, 37)
# Part of a release's name: another one when releases hold something else than before.
FORMAT = b"4"
# Seconds since 1970 that stand in the libraries' wheels: 1980, the first year that zip files know.
WHEEL_TIME = "315532800"
# CycloneDX, beside the application.
BILL_OF_MATERIALS = "sbom.cdx.json"
# The application's files, one in a line, for the doctor and for the comparison of hosts.
LIST_OF_FILES = ".files"


def release_files(source: Path, paths: list[str], exclude: list[str]) -> list[Path]:
    """Return the application's files at ``paths`` below ``source``, sorted; of a Git work tree what Git tracks.

    Args:
        source: the folder that they are named from.
        paths: files and folders.
        exclude: patterns of names, of files and of folders, that are left out.

    Raises:
        SystemExit: with one sentence when a path is not there, or leads out of the source.
    """
    tracked = _tracked(source)
    found: set[Path] = set()
    for name in paths:
        path = source / name
        if not path.exists() or not path.resolve().is_relative_to(source.resolve()):
            sys.exit(f"app_release_paths has {name}, but there is no such file or folder in {source}.")
        for file in path.rglob("*") if path.is_dir() else [path]:
            parts = file.relative_to(source).parts
            left_out = any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in exclude)
            # Git ignores files made by hand or by programs: databases, logs, secrets.
            if file.is_file() and not left_out and (tracked is None or file in tracked or name != "."):
                found.add(file)
    return sorted(found)


def _tracked(source: Path) -> set[Path] | None:
    command = ["git", "-C", str(source), "ls-files", "-z"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    names = result.stdout.split("\0") if result.returncode == 0 else []
    return {source / name for name in names if name} or None


def _entries(requirements: str) -> Iterator[tuple[str, Requirement | None]]:
    """Yield each entry of a lock with its hashes; options of pip and comments are no requirements."""
    for text in re.findall(r"(?:.*\\\n)*.+", requirements.replace("\r\n", "\n")):
        try:
            yield text, Requirement(re.split(r" --| #|\s*\\", text)[0])
        except InvalidRequirement:
            yield text, None


def check_lock(requirements: str, needs: list[str]) -> None:
    """Look whether the lock has what the platform runs the application with.

    Raises:
        SystemExit: with one sentence that names the package.
    """
    pins: dict[str, str] = {}
    for _, requirement in _entries(requirements):
        if requirement:
            exact = [spec.version for spec in requirement.specifier if spec.operator in ("==", "===")]
            pins[requirement.name.lower().replace("_", "-")] = exact[0] if exact else ""
    for need in map(Requirement, needs):
        pin = pins.get(need.name)
        if pin is None:
            sys.exit(f"The locked requirements lack {need.name}, which the platform runs: add {need}, and lock again.")
        if not pin:
            sys.exit(f"The locked requirements name {need.name} without ==VERSION: lock them, with hashes.")
        if not need.specifier.contains(pin, prereleases=True):
            sys.exit(
                f"The locked requirements have {need.name} {pin}, but it must be {need.specifier}: lock them again."
            )


def digest(source: Path, files: list[Path], requirements: str) -> str:
    """Return what the release is called on all hosts: twelve hexadecimal digits over names and contents."""
    checksum = hashlib.sha256(FORMAT)
    for path in files:
        checksum.update(f"{path.relative_to(source)}\0".encode())
        checksum.update(hashlib.sha256(path.read_bytes()).digest())
    checksum.update(hashlib.sha256(requirements.encode()).digest())
    return checksum.hexdigest()[:12]


def host_requirements(requirements: str, python: str, machine: str) -> str:
    """Return the requirements whose environment markers hold on a host, without the markers.

    pip judges markers by the controller's Python. A lock for several Pythons may name a package once for each.
    """
    host = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_version": python,
        "sys_platform": "linux",
    }
    # Its patch release is not known here; the host judges again when it installs.
    hosts = [{**host, "python_full_version": f"{python}.{patch}"} for patch in (0, 99)]
    kept = []
    for text, requirement in _entries(requirements):
        if not requirement or not requirement.marker:
            kept.append(text)
        elif any(requirement.marker.evaluate(each) for each in hosts):
            kept.append(re.sub(r"\s*;.*?(?= --| #|\s*\\|$)", "", text, count=1))
    return "\n".join(kept)


def download_wheels(requirements: str, python: str, machine: str, directory: Path) -> None:
    """Fetch every wheel that a host needs of those that ``requirements`` locks, checked against its hashes.

    Raises:
        SystemExit: with one sentence when a wheel cannot be had.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as unconditional:
        unconditional.write(host_requirements(requirements, python, machine))
        unconditional.flush()
        abi = "cp" + python.replace(".", "")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--only-binary=:all:", "--requirement", unconditional.name]
        command += ["--dest", str(directory), "--python-version", python, "--implementation", "cp"]
        command += ["--abi", abi, "--abi", "abi3", "--abi", "none", "--platform", f"linux_{machine}"]
        for minor in reversed(GLIBC_MINOR_VERSIONS):
            command += ["--platform", f"manylinux_2_{minor}_{machine}"]
        command += ["--platform", f"manylinux2014_{machine}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    if lacking := re.search(r"No matching distribution found for (\S+)", result.stderr):
        sys.exit(
            f"pip finds no wheel of {lacking[1]} for Python {python} on {machine}: lock another version, build its"
            " wheel (docs/start/your-app.md), or check that the index can be reached."
        )
    sys.exit("cannot download the application's wheels: " + result.stderr.strip().splitlines()[-1])


def build_wheels(libraries: list[Path], directory: Path) -> list[Path]:
    """Build the wheel of each library of our own into ``directory``; the same source gives the same bytes.

    Raises:
        SystemExit: with the last line of the program that builds when it fails.
    """
    for library in libraries:
        command = [sys.executable, "-m", "flit_core.wheel", "--outdir", str(directory), str(library)]
        env = {**os.environ, "SOURCE_DATE_EPOCH": WHEEL_TIME}
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if result.returncode != 0:
            said = (result.stderr.strip().splitlines() or ["it says nothing"])[-1]
            sys.exit(f"cannot build {library}, which requirements/controller.txt has flit_core for: {said}")
    return sorted(directory.glob("*.whl"))


def locked(wheel: Path) -> str:
    """Return the requirement, pinned and with its hash, that this wheel meets."""
    name, version, *_ = wheel.name.split("-")
    checksum = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{name.replace('_', '-')}=={version} \\\n    --hash=sha256:{checksum}\n"


def bill_of_materials(requirements_file: Path, name: str, identity: str) -> bytes:
    """Return the list of what ``requirements_file`` locks, as the parts of the release ``identity``.

    Raises:
        SystemExit: with the last line of the program that makes the list when it fails.
    """
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(requirements_file)]
    # To validate it takes four seconds; tests/roles/test_build_release.py does.
    command += ["--spec-version", "1.6", "--output-reproducible", "--no-validate"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = (result.stderr.strip().splitlines() or ["it says nothing"])[-1]
        sys.exit(f"cannot list the release's parts, which requirements/controller.txt has cyclonedx-bom for: {said}")
    bom = json.loads(result.stdout)
    bom.setdefault("metadata", {})["component"] = {
        "bom-ref": "release",
        "type": "application",
        "name": name,
        "version": identity,
    }
    return json.dumps(bom, indent=2).encode()


def build(
    source: Path,
    name: str,
    requirements_file: Path,
    *,
    files: list[Path],
    own: list[Path],
    python: str,
    machine: str,
    output: Path,
) -> dict[str, object]:
    """Build the release archive when it does not exist yet, with the wheels ``own`` besides those that are locked.

    Returns:
        ``id`` and ``archive`` of the release, and whether it was ``built`` now.
    """
    others = requirements_file.read_text()
    requirements = others + "".join(map(locked, own))
    if not files:
        sys.exit(f"there is no application in {source}: set app_release_source and app_release_paths to what holds it.")
    identity = f"{digest(source, files, requirements)}-{python}"
    archive = output / f"{identity}-{machine}.tar"
    if archive.exists():
        return {"id": identity, "archive": str(archive), "built": False}

    wheels_digest = hashlib.sha256(f"{others}{python}{machine}".encode()).hexdigest()[:12]
    wheels = output / f"wheels-{wheels_digest}"
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        if not wheels.exists():
            fresh = Path(scratch, "wheels")
            download_wheels(others, python, machine, fresh)
            fresh.rename(wheels)
        unfinished = Path(scratch, "release.tar")
        with tarfile.open(unfinished, "w") as tar:
            for path in files:
                tar.add(path, arcname=str(path.relative_to(source)), filter=owned_by_root)
            tar.add(wheels, arcname="wheels", filter=owned_by_root)
            for wheel in own:
                tar.add(wheel, arcname=f"wheels/{wheel.name}", filter=owned_by_root)
            (whole := Path(scratch, "requirements.txt")).write_text(requirements)
            written = int(requirements_file.stat().st_mtime)
            listed = "".join(f"{path.relative_to(source)}\n" for path in files)
            for member_name, content in (
                (LIST_OF_FILES, listed.encode()),
                ("requirements.txt", requirements.encode()),
                (BILL_OF_MATERIALS, bill_of_materials(whole, name, identity)),
            ):
                member = tarfile.TarInfo(member_name)
                member.size, member.mtime = len(content), written
                tar.addfile(owned_by_root(member), io.BytesIO(content))
        unfinished.rename(archive)
    return {"id": identity, "archive": str(archive), "built": True}


def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Make an archive member belong to root and be readable by all: a release holds no secrets."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def main() -> None:
    """Build the release that the command line describes and print its description as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="the application's name")
    parser.add_argument("--source", type=Path, required=True, help="folder that the paths are in")
    parser.add_argument("--path", action="append", default=[], help="file or folder of the application; . for all")
    parser.add_argument("--exclude", action="append", default=[], help="pattern of names to leave out")
    parser.add_argument("--need", action="append", default=[], help="requirement that the locked ones must meet")
    parser.add_argument("--requirements", type=Path, required=True, help="locked requirements with hashes")
    parser.add_argument("--library", type=Path, action="append", default=[], help="folder of a package of our own")
    parser.add_argument("--python", required=True, help="the host's Python, like 3.11")
    parser.add_argument("--machine", required=True, help="the host's architecture, like x86_64")
    parser.add_argument("--output", type=Path, required=True, help="folder for archives and wheels")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "lock").open("w") as lock, tempfile.TemporaryDirectory() as wheels:
        # Several playbooks may run side by side.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not arguments.requirements.is_file():
            sys.exit(f"app_release_requirements is {arguments.requirements}, but there is no such file.")
        check_lock(arguments.requirements.read_text(), arguments.need)
        release = build(
            arguments.source,
            arguments.name,
            arguments.requirements,
            files=release_files(arguments.source, arguments.path, arguments.exclude),
            own=build_wheels(arguments.library, Path(wheels)),
            python=arguments.python,
            machine=arguments.machine,
            output=arguments.output,
        )
    print(json.dumps(release))


if __name__ == "__main__":
    main()
