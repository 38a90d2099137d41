"""Packages of the release: whether they are whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hosttools import files
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, FILES, WARNING, Finding


@apart
def packages(live: Path) -> Iterator[Finding]:
    """Look whether the packages that the release names are whole: each has a list of its files and their sizes."""
    page = "failed-deploy"
    for place in live.glob("venv/lib/python3*/site-packages"):
        installed = {}
        for package in place.glob("*.dist-info"):
            name, _, version = package.name.removesuffix(".dist-info").partition("-")
            name = re.sub(r"[-_.]+", "-", name).lower()
            installed[name] = version
            for line in files.read(package / "RECORD").splitlines():
                file, _, size = line.rsplit(",", 2) if line.count(",") > 1 else (line, "", "")
                seen = files.lstat(place / file.strip('"'))
                if seen is None and not file.endswith(".pyc"):
                    yield Finding(
                        CRITICAL, f"{place / file} is missing, of the package {name}", page, FILES, certain=True
                    )
                    break
                if seen is not None and size.isdigit() and seen.st_size != int(size):
                    what = f"{place / file}, of the package {name}, was changed by hand"
                    yield Finding(WARNING, what, page, FILES, suspect=True)
                    break
        pins = re.findall(
            r"^([\w.-]+)(?:\[.*\])?==([^;\s]+)[^;\n]*$", files.read(live / "requirements.txt"), re.MULTILINE
        )
        for name, version in pins:
            here = installed.get(re.sub(r"[-_.]+", "-", name).lower())
            if here is None:
                yield Finding(CRITICAL, f"the package {name} is missing in {place}", page, FILES, certain=True)
            elif here != version:
                what = f"the package {name} in {place} is {here}, the release needs {version}"
                yield Finding(WARNING, what, page, FILES, suspect=True)
