"""The Lua scripts that a release may run in Redis: ``python -m durable_console.known_scripts [DIRECTORY]``.

Prints JSON, the digest of each script (SHA-1, as Redis names it) and its text. Found are the texts that the application
and packages give to ``register_script``, redis-py's way (ours, Celery's, kombu's, those of redis-py's locks and of
whatever else is installed), and the files ``*.lua`` of application and library. Nothing is imported.

DIRECTORY is a release with its own virtual environment, whose file ``.files`` lists the application, or the application
itself. The packages are the release's, and those of this interpreter, whose commands run their scripts beside it.
"""

import ast
import hashlib
import json
import site
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

LIST_OF_FILES = Path(".files")  # roles/app_release/files/build_release.py writes it


def library() -> Path:
    """Return the directory of celery-durable, which may be installed as a link."""
    spec = find_spec("celery_durable")
    if spec is None or spec.origin is None:
        raise SystemExit("celery-durable is not installed here: run site.yml, or scripts/setup.sh dev.")
    return Path(spec.origin).parent


def known(release: Path | None = None) -> dict[str, str]:
    """Return the scripts of a release and of what is installed here, by their digests."""
    packages, own, files = [Path(place) for place in site.getsitepackages()], [library()], []
    if release and (listed := release / LIST_OF_FILES).exists():
        files = [release / line for line in listed.read_text().splitlines()]
        packages += release.glob("venv/lib/python3*/site-packages")
        own += release.glob("venv/lib/python3*/site-packages/celery_durable")
    elif release:
        files = [file for file in release.rglob("*") if file.is_file()]
    return scripts(files, own, packages)


def registered(source: str) -> Iterator[str]:
    """Return the texts that a module gives to ``register_script``: as a literal, or by the name of a constant in it."""
    tree = ast.parse(source)
    constants: defaultdict[str, list[str]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and (text := _literal(node.value)) is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                constants[_name(target)].append(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) == "register_script":
            for given in (*node.args[:1], *(word.value for word in node.keywords if word.arg == "script")):
                text = _literal(given)
                yield from constants[_name(given)] if text is None else [text]


def scripts(application: Sequence[Path], own: Sequence[Path], packages: Iterable[Path]) -> dict[str, str]:
    """Return the scripts of an application's files, our own directories and those of packages, by their digests."""
    lua = [*application, *(file for directory in own for file in directory.rglob("*.lua"))]
    found = [file.read_text() for file in lua if file.suffix == ".lua"]
    sources = (file for directory in (*own, *packages) for file in directory.rglob("*.py"))
    for file in (*(file for file in application if file.suffix == ".py"), *sources):
        source = file.read_bytes()
        if b"register_script" in source:
            # A package may ship templates, or files for another Python: nothing runs those.
            with suppress(SyntaxError, ValueError):
                found += registered(source.decode())
    return {hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): text for text in sorted(found)}


def _literal(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


if __name__ == "__main__":
    json.dump(known(*map(Path, sys.argv[1:2])), sys.stdout)
