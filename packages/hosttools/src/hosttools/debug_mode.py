"""Let this host's workers log at the level debug and send task events, for some minutes: a timer of systemd ends it.

Runs on the host as root. Without --minutes it only says whether it is on. What is changed lies in /run, which a reboot
empties: a drop-in of each unit, or a file of supervisor's that only a link in its directory leads to.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path

from hosttools import process

TIMEOUT = 3600  # seconds: workers end their tasks before they restart
DROP_IN = "90-debug-mode.conf"
LEVEL = re.compile(r"--loglevel=\S+")
DEBUG = "--loglevel=debug --task-events"


def run(*command: str) -> str:
    """Run a command that must succeed and return what it says.

    Raises:
        SystemExit: it failed; the message is its own.
    """
    done = process.run(*command, timeout=TIMEOUT)
    if not done.ok:
        sys.exit(f"{shlex.join(command)}: {done.errors or done.output}")
    return done.output


def drop_in(unit: str) -> str:
    """Return the drop-in that replaces the command of a unit, given its text."""
    start = re.search(r"^ExecStart=(?:.*\\\n)*.*\n", unit, re.MULTILINE)
    return f"[Service]\nExecStart=\n{LEVEL.sub(DEBUG, start[0])}" if start else ""


def other_commands(programs: str) -> str:
    """Return sections that replace the commands of supervisor's programs, given the text of their file."""
    sections = re.findall(r"^(\[program:.*\]\n)(?:;.*\n)*(command=.*\n(?:[ \t]+.*\n)*)", programs, re.MULTILINE)
    return "".join(name + LEVEL.sub(DEBUG, command) for name, command in sections)


class Systemd:
    """Workers that are units: each gets a drop-in of systemd's runtime directory."""

    def __init__(self, prefix: str, pools: list[str]) -> None:
        """Know the units."""
        self.units = [f"{prefix}-celery" + ("" if pool == "default" else f"-{pool}") for pool in pools]
        self.files = [Path(f"/run/systemd/system/{unit}.service.d/{DROP_IN}") for unit in self.units]
        # What a timer runs when nobody else is there any more. No semicolons: Debian 12's systemd-run escapes them.
        restart = shlex.join(["systemctl", "restart", *self.units])
        self.end = f"rm -f {shlex.join(map(str, self.files))} && systemctl daemon-reload && {restart}"

    def begin(self) -> None:
        """Write the drop-ins and restart."""
        for unit, file in zip(self.units, self.files, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(drop_in(Path(f"/etc/systemd/system/{unit}.service").read_text()))
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", *self.units)


class Supervisor:
    """Workers that are supervisor's programs: a second file, read after the first, gives them other commands."""

    def __init__(self, prefix: str) -> None:
        """Know the files."""
        self.programs = Path(f"/etc/supervisor/conf.d/{prefix}-celery.conf")
        self.files = [Path(f"/run/{prefix}-{DROP_IN}")]
        self.link = Path(f"/etc/supervisor/conf.d/{prefix}-celery~debug-mode.conf")
        self.end = f"rm -f {self.files[0]} {self.link} && supervisorctl update"

    def begin(self) -> None:
        """Write the file and let supervisor take it up, which restarts the programs."""
        self.files[0].write_text(other_commands(self.programs.read_text()))
        if not self.link.is_symlink():
            self.link.symlink_to(self.files[0])
        run("supervisorctl", "update")


def main() -> None:
    """Say how it is, or switch it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", required=True, help="the installation's name")
    parser.add_argument("--pool", action="append", default=[])
    parser.add_argument("--supervisor", action="store_true", help="supervisor runs the workers, not systemd")
    parser.add_argument("--minutes", type=int, help="0 ends it")
    arguments = parser.parse_args()
    # Not with the prefix first: the sandbox of the application's units would hold for it.
    timer = f"debug-mode-end-{arguments.prefix}"
    workers = Supervisor(arguments.prefix) if arguments.supervisor else Systemd(arguments.prefix, arguments.pool)
    on = any(file.exists() for file in workers.files)
    if arguments.minutes is not None:
        process.run("systemctl", "stop", f"{timer}.timer", timeout=TIMEOUT)
        if arguments.minutes:
            # First of all, so that nothing can come between its beginning and its end.
            until = [f"--on-active={arguments.minutes}min", "--timer-property=AccuracySec=1s"]
            run("systemd-run", f"--unit={timer}", "--collect", *until, "/bin/sh", "-c", workers.end)
            workers.begin()
        elif on:
            run("/bin/sh", "-c", workers.end)
    if not any(file.exists() for file in workers.files):
        print("Debug mode is off.")
    else:
        # Day, date, time and zone; nothing when somebody has stopped the timer.
        ends = run("systemctl", "list-timers", "--no-legend", f"{timer}.timer").split()[:4]
        print(f"Debug mode is on until {' '.join(ends) or 'somebody ends it, with minutes=0'}.")
    if arguments.minutes or (on and arguments.minutes == 0):
        print("changed")
