"""Secrets that are files, for programs that read variables."""

import os
import re
from collections.abc import MutableMapping
from pathlib import Path

from celery_durable.options import OptionError


def load(environ: MutableMapping[str, str]) -> None:
    """Put each secret that is a file into the environment; what is there already wins.

    The files are named like variables and lie in SECRETS_DIRECTORY, or in CREDENTIALS_DIRECTORY, which systemd sets.

    Raises:
        OptionError: a variable names no directory that this user may read.
    """
    masked: list[str] = []
    for name in ("SECRETS_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        if directories := environ.get(name):
            for file in sorted(_first_readable(name, directories).iterdir()):
                if re.fullmatch(r"[A-Z][A-Z0-9_]*", file.name) and file.is_file():
                    environ.setdefault(file.name, file.read_text().rstrip("\n"))
                    masked.append(file.name)
    environ.setdefault("DURABLE_MASKED", ",".join(masked))


def _first_readable(name: str, directories: str) -> Path:
    # Users have directories of their own, and one settings file names all of them.
    for place in map(Path, directories.split(":")):
        if place.is_dir() and os.access(place, os.R_OK | os.X_OK):
            return place
    raise OptionError(f"{name}={directories!r} is rejected: it must name a directory that this user can read.")
