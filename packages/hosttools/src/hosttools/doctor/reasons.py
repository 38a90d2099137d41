"""Why a unit does not run: the reason in its log, and who has its port."""

import re

from hosttools import process, procfs, systemd
from hosttools.masking import TRACEBACK, quote

REASON = re.compile(
    r"Failed with result|Main process exited|Failed at step|Failed to (?!kill)|[Ee]rror|ERROR|CRITICAL|FATAL|Can't"
    r"|refuse|already in use|denied|No such file|Killed|[Bb]ad directive|Invalid|Bad file format|Unexpected end of file"
    r"|not permitted|No space left|Read-only file system|corrupt"
)


def because(unit: str) -> str:
    """Return the reason that a unit's log gives, whole, and which program of others has its port if it is taken."""
    log = systemd.journal("--lines=200", f"--unit={unit}")
    said = reason(log)
    if "irective" in said and (directives := re.findall(r"^>>> (.*)$", log, re.MULTILINE)):
        said += f" {quote(directives[-1])}"
    # systemd says more after it, with less in it. Its helper's "in use" is not always counted among the unit's lines.
    if taken := [line for line in reasons(log)[-4:] if "in use" in line or "listening socket" in line]:
        said = quote(taken[0])
        said += listener(wanted_port(taken[0], process.run("systemctl", "cat", unit).output), unit)
    return f": {said}" if said else ""


def reasons(log: str) -> list[str]:
    """Return the lines of a log that look like a reason, those of the program itself where there are any."""
    lines = [line for line in log.splitlines() if REASON.search(line)]
    own = [line for line in lines if not re.search(r"Failed with result|Main process exited|Failed to start", line)]
    return own or lines


def reason(log: str) -> str:
    """Return the last reason in a log: a line, or a chain of exceptions."""
    found = reasons(log)
    # What comes after an exception often says less.
    raised = [line for line in found[-4:] if '"exception"' in line]
    printed = [trace.start() for trace in TRACEBACK.finditer(log)]
    if printed and found and not raised and found[-1] in log[printed[-1] :].splitlines():
        # Up to what systemd, or a logger, says next.
        next_line = r"\n(?:\{|\S+\.(?:service|socket): |(?:Failed to|Start|Stopp)\S* )"
        return quote(re.split(next_line, log[_first_of_chain(log, printed) :], maxsplit=1)[0])
    return quote((raised or found or [""])[-1])


def _first_of_chain(log: str, starts: list[int]) -> int:
    """Return where the chain begins that ends with the last traceback of a log."""
    first = starts[-1]
    for before in reversed(starts[:-1]):
        if not re.search(r"\n\n(?:The above exception was|During handling of)[^\n]*\n\n$", log[before:first]):
            break
        first = before
    return first


def wanted_port(line: str, unit_file: str) -> int:
    """Return the port that a unit did not get: its log names it, or its file; 0 where neither does."""
    found = re.search(r":(\d{2,5})\b", re.sub(r"(?<![\d.:])\d\d:\d\d(:\d\d)?", "", line)) or re.search(
        r"(?:ListenStream=|--port[= ]|listen-address=)(?:\S*:)?(\d{2,5})\b", unit_file
    )
    return int(found[1]) if found else 0


def listener(port: int, unit: str = "") -> str:
    """Say which program has a port, unless it is the unit itself, or systemd for its socket."""
    sockets = process.run("ss", "-ltnpH", f"sport = :{port}").output if port else ""
    stem = re.sub(r"\.(?:service|socket)$", "", unit)
    for name, number in re.findall(r'"([^"]+)",pid=(\d+)', sockets):
        group = procfs.group(number)
        if number == "1" and stem:
            mine = f":{port} " in process.run("systemctl", "show", "--property=Listen", f"{stem}.socket").output
        else:
            mine = bool(stem) and re.sub(r"\.(?:service|socket)$", "", group) == stem
        if mine:
            return ""
        of = f" of {group}" if group.endswith((".service", ".scope")) else ""
        return f" (port {port} is held by {name}, process {number}{of})"
    return ""
