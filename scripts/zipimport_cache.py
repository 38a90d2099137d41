"""Keep what Python compiles out of zip files; ``testhost.sh`` puts this into its images.

Each module of Ansible comes as a zip file and compiles up to 120 sources of it, the same ones for each task: 40 % of a
module's processor time (Python 3.11, ``systemd_service``). Test hosts run thousands. What is imported stays the same;
only the file names in tracebacks are those of the first import.
"""

# ruff: noqa: PLC0415, PTH105, PTH123, S302, SLF001
# Each start of Python imports this, and pathlib costs more than all of it. The files are root's alone.

from __future__ import annotations

import marshal
import os
import zipimport
from types import CodeType

# Root's, as Ansible is after become; whoever else runs a module compiles as ever.
DIRECTORY = "/var/cache/zipimport"

_compile = zipimport._compile_source  # type: ignore[attr-defined]


def compile_source(pathname: str, source: bytes) -> CodeType:
    """Return the code of ``source``, compiled now or by an earlier process."""
    import hashlib

    kept = f"{DIRECTORY}/{hashlib.sha256(source).hexdigest()}"
    try:
        with open(kept, "rb") as file:
            code: CodeType = marshal.load(file)
            return code
    except (OSError, ValueError, EOFError):
        code = _compile(pathname, source)
    mine = f"{kept}.{os.getpid()}"
    try:
        with open(mine, "wb") as new:
            marshal.dump(code, new)
        os.replace(mine, kept)
    except OSError:
        pass
    return code


zipimport._compile_source = compile_source  # type: ignore[attr-defined]
