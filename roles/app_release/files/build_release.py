#!/usr/bin/env python3
"""Pack a release on the controller: the application, its locked requirements, their wheels and a list of them all.

A release's name is a digest of its source, so the same input is never built twice and a host can tell a new release
from the one it has. Wheels are fetched for the host's Python, not for the controller's; its version ends the name.
"""

import argparse
import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# Debian 12 has glibc 2.36. Wheels are tagged with the oldest glibc they run on; 2.17 is manylinux2014's.
GLIBC_MINOR_VERSIONS = range(17, 37)
# Part of a release's name: another one when releases hold something else than before.
FORMAT = b"3"
# Seconds since 1970 that stand in the libraries' wheels: 1980, the first year that zip files know.
WHEEL_TIME = "315532800"
# CycloneDX, beside the application.
BILL_OF_MATERIALS = "sbom.cdx.json"


def release_files(source: Path, package: str) -> list[Path]:
    """Return the application's files below ``source / package``, sorted, without compiled leftovers."""
    return sorted(path for path in (source / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def digest(source: Path, files: list[Path], requirements: str) -> str:
    """Return what the release is called on all hosts: twelve hexadecimal digits over names and contents."""
    checksum = hashlib.sha256(FORMAT)
    for path in files:
        checksum.update(f"{path.relative_to(source)}\0".encode())
        checksum.update(hashlib.sha256(path.read_bytes()).digest())
    checksum.update(hashlib.sha256(requirements.encode()).digest())
    return checksum.hexdigest()[:12]


def download_wheels(requirements: str, python: str, machine: str, directory: Path) -> None:
    """Fetch every wheel that ``requirements`` locks, checked against its hashes, into ``directory``.

    pip judges environment markers by the controller's Python; they are cut off, so that the host, which judges them
    again when it installs, finds whatever it needs.

    Raises:
        SystemExit: with pip's last line when a wheel cannot be had.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as unconditional:
        unconditional.write(re.sub(r" ; [^\\\n]*", "", requirements))
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
    if result.returncode != 0:
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


def bill_of_materials(requirements_file: Path, package: str, identity: str) -> bytes:
    """Return the list of what ``requirements_file`` locks, as the parts of the release ``identity``.

    Raises:
        SystemExit: with the last line of the program that makes the list when it fails.
    """
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(requirements_file)]
    # To validate it takes four seconds; tests/test_build_release.py does.
    command += ["--spec-version", "1.6", "--output-reproducible", "--no-validate"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = (result.stderr.strip().splitlines() or ["it says nothing"])[-1]
        sys.exit(f"cannot list the release's parts, which requirements/controller.txt has cyclonedx-bom for: {said}")
    bom = json.loads(result.stdout)
    bom.setdefault("metadata", {})["component"] = {
        "bom-ref": "release",
        "type": "application",
        "name": package,
        "version": identity,
    }
    return json.dumps(bom, indent=2).encode()


def build(
    source: Path,
    package: str,
    requirements_file: Path,
    *,
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
    files = release_files(source, package)
    if not files:
        sys.exit(f"there is no application in {source / package}: set app_release_source to the folder that holds it")
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
            for name, content in (
                ("requirements.txt", requirements.encode()),
                (BILL_OF_MATERIALS, bill_of_materials(whole, package, identity)),
            ):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(content), written
                tar.addfile(owned_by_root(member), io.BytesIO(content))
        unfinished.rename(archive)
    return {"id": identity, "archive": str(archive), "built": True}


def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Make an archive member belong to root and be readable by all: a release holds no secrets."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def main() -> None:
    """Build the release that the command line describes and print its description as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the package")
    parser.add_argument("--package", required=True, help="name of the package's folder")
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
        release = build(
            arguments.source,
            arguments.package,
            arguments.requirements,
            own=build_wheels(arguments.library, Path(wheels)),
            python=arguments.python,
            machine=arguments.machine,
            output=arguments.output,
        )
    print(json.dumps(release))


if __name__ == "__main__":
    main()
