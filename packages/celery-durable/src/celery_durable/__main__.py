"""The command ``celery-durable``: Celery's own, and any other program, with the guarantees and the secrets of files.

celery-durable -A PROJECT worker|beat|...   what ``celery`` does, for an application that needs no change
celery-durable exec [--] PROGRAM [ARG]...   a web server, or whatever else sends tasks
celery-durable check -A PROJECT             which guarantees an application gets, and which not
"""

import os
import sys

# They bring nothing but the standard library: gevent has not patched yet.
from celery_durable import secret_files
from celery_durable.options import OptionError, Options

LOADER = "celery_durable.loader:load"
ASYNCIO_POOL = "celery_durable.worker.asyncio_pool:TaskPool"


def prepare() -> None:
    """Put the loader, and each secret that is a file, into the environment; what is there already wins."""
    os.environ.setdefault("CELERY_LOADER", LOADER)
    try:
        secret_files.load(os.environ)
    except OptionError as error:
        sys.exit(str(error))


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["exec"]:
        program = arguments[2:] if arguments[1:2] == ["--"] else arguments[1:]
        if not program:
            sys.exit("celery-durable exec: name a program, like celery-durable exec -- uvicorn proj.asgi:app.")
        prepare()
        # A request waits for what it sends.
        os.environ.setdefault("DURABLE_CLIENT", "web")
        try:
            os.execvp(program[0], program)  # noqa: S606 - what the caller named
        except OSError as error:
            sys.exit(f"celery-durable exec: {program[0]} cannot be run: {error.strerror}.")
    from celery import maybe_patch_concurrency  # noqa: PLC0415 - first of all

    maybe_patch_concurrency(sys.argv)
    prepare()
    try:
        Options.from_environment()
    except OptionError as error:
        sys.exit(str(error))
    if arguments[:1] == ["check"]:
        from celery_durable.check import main as check  # noqa: PLC0415

        check(arguments[1:])
    from celery import concurrency  # noqa: PLC0415

    # Before the command line's choices are made.
    concurrency.ALIASES["asyncio"] = ASYNCIO_POOL
    from celery.bin.celery import main as celery  # noqa: PLC0415

    sys.exit(celery())


if __name__ == "__main__":
    main()
