"""Lookup plugin: packages/hosttools as one program for ``python3 -``, where no file can be written any more."""

from __future__ import annotations

import base64
import functools
import json
import textwrap
import zlib
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: hosttools
short_description: The package hosttools as the text of one program
description:
  - Returns a program that holds the sources of packages/hosttools, for C(stdin) of C(python3 - COMMAND ARGUMENT ...).
options:
  stdin:
    description: What the program reads as its own standard input, such as a key that no argument may show.
    type: str
    default: ""
"""

SOURCES = Path(__file__).parents[2] / "packages/hosttools/src"
# The importer imports from memory alone; linecache finds the lines of a traceback through get_source.
PROGRAM = """\
# The sources of packages/hosttools as JSON, zlib and base64. To read one of them, put this text into FILE:
#   python3 -c 'exec(open("FILE").read().partition("\\nclass ")[0]); print(SOURCES["hosttools/doctor/units.py"])'
import base64, io, json, sys, zlib
from importlib.machinery import ModuleSpec
SOURCES = json.loads(zlib.decompress(base64.b64decode('''
{packed}
''')))
class Sources:
    @staticmethod
    def file(name):
        path = name.replace(".", "/")
        return next((file for file in (path + ".py", path + "/__init__.py") if file in SOURCES), None)
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if file := cls.file(name):
            return ModuleSpec(name, cls, origin=file, is_package=file.endswith("/__init__.py"))
    @staticmethod
    def create_module(spec):
        return None
    @classmethod
    def exec_module(cls, module):
        file = module.__file__ = module.__spec__.origin
        exec(compile(SOURCES[file], file, "exec"), module.__dict__)
    @classmethod
    def get_source(cls, name):
        return SOURCES[cls.file(name)]
def show(*error):
    import traceback
    traceback.print_exception(*error)
sys.meta_path.insert(0, Sources)
sys.excepthook = show  # before Python 3.13 its own shows no line of a module that is no file
sys.stdin = io.StringIO({stdin!r})
from hosttools.__main__ import main
main()
"""


@functools.cache
def packed() -> str:
    """Return the sources as the program holds them: the same sources give the same text."""
    files = {str(file.relative_to(SOURCES)): file.read_text(encoding="utf-8") for file in SOURCES.rglob("*.py")}
    text = json.dumps(files, sort_keys=True).encode()
    return "\n".join(textwrap.wrap(base64.b64encode(zlib.compress(text, 9)).decode(), 120))


def program(stdin: str = "") -> str:
    """Return the one program."""
    return PROGRAM.format(packed=packed(), stdin=stdin)


class LookupModule(LookupBase):
    """Return the program."""

    def run(self, _: list[Any], variables: dict[str, Any] | None = None, **options: Any) -> list[str]:
        """Return a list of the one program."""
        self.set_options(var_options=variables, direct=options)
        return [program(self.get_option("stdin"))]
