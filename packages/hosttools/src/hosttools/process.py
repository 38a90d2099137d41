"""Commands of this host: each ends within a timeout, and its end is a result, never an exception."""

import os
import pwd
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

import hosttools

NOT_FOUND, TIMED_OUT = 127, 124  # as shells and timeout(1) say it
# What still runs.
RUNNING: set[subprocess.Popen[str]] = set()


class Result(NamedTuple):
    """How a command ended, and what it printed; ``errors`` says why where it never ran or did not end."""

    code: int = 0
    output: str = ""
    errors: str = ""

    @property
    def ok(self) -> bool:
        """Tell whether it succeeded."""
        return self.code == 0


def run(
    *command: str,
    timeout: float | None = None,
    stdin: str | None = None,
    merge: bool = False,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
    account: str = "",
) -> Result:
    """Run a command.

    Args:
        command: the program and its arguments.
        timeout: in seconds; the package's, if None.
        stdin: what it reads.
        merge: put its errors among its output, as a terminal shows them.
        environment: all that it gets, instead of this process' own.
        cwd: where it runs.
        account: the user that it runs as, with that user's groups.
    """
    user = pwd.getpwnam(account) if account else None
    seconds = hosttools.TIMEOUT if timeout is None else timeout
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            cwd=cwd,
            user=account or None,
            group=user.pw_gid if user else None,
            extra_groups=os.getgrouplist(account, user.pw_gid) if user else None,
        )
    except OSError as error:
        return Result(NOT_FOUND, "", str(error))
    with process:
        RUNNING.add(process)
        try:
            output, errors = process.communicate(stdin, timeout=seconds)
            return Result(process.returncode, output.strip(), (errors or "").strip())
        except subprocess.TimeoutExpired:
            process.kill()
            return Result(TIMED_OUT, "", f"{command[0]} did not end within {seconds:g} s")
        finally:
            RUNNING.discard(process)


def output(*command: str) -> str:
    """Return what a command prints.

    Raises:
        TimeoutError: it did not end; nothing of it must pass for everything.
    """
    ended = run(*command)
    if ended.code == TIMED_OUT:
        raise TimeoutError(ended.errors)
    return ended.output


def end_all() -> None:
    """Kill what still runs."""
    for process in list(RUNNING):
        process.kill()
