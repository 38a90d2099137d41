"""Record what this host is like while it is healthy, and tell later how it differs, whether or not somebody foresaw it.

With ``--write`` it records, after a green health gate; without it prints findings as the doctor does, whose arguments
it takes. Runs on the host as root. The record is bounded and holds no secret: files, variables and long values as
digests, Redis' passwords not at all.
"""

import argparse
import json
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hosttools.findings import NOTE, Finding, tell
from hosttools.state import compare, contents
from hosttools.state.values import ENTRIES, State, digest

WITHIN = 6  # seconds


def look(app: str, given: Any, names: list[str]) -> dict[str, State | str]:
    """Return the state of each part, or why it cannot be seen, within ``WITHIN`` seconds."""
    found: dict[str, State | str] = {}

    def one(part: str) -> None:
        try:
            seen = compare.PARTS[part][0](app, given)
            found[part] = dict(list(seen.items())[:ENTRIES])
        except Exception as error:  # noqa: BLE001 - one part must not hide the others
            found[part] = f"{type(error).__name__}: {error}"

    threads = {part: threading.Thread(target=one, args=(part,), daemon=True) for part in names}
    until = time.monotonic() + WITHIN
    for thread in threads.values():
        thread.start()
    for part, thread in threads.items():
        thread.join(max(0, until - time.monotonic()))
        if thread.is_alive():
            found[part] = f"it takes longer than {WITHIN} s"
    return dict(found)


def recorded(place: Path) -> dict[str, Any]:
    """Return the record, empty where there is none."""
    record = place / "healthy.json"
    return dict(json.loads(record.read_text())) if record.exists() else {}


def write(place: Path, now: dict[str, State | str]) -> None:
    """Record the parts that could be seen; others stay as they were recorded."""
    record, before = place / "healthy.json", recorded(place)
    seen: dict[str, Any] = {part: state for part, state in now.items() if isinstance(state, dict)}
    both = {**before, **seen}
    files_of = {**both.get("files", {}), **both.get("release", {})}
    texts: State = before.get("texts", {})
    kept = {name: text for name, text in texts.items() if files_of.get(name, "").endswith(digest(text))}
    seen["texts"] = {**kept, **contents.texts(files_of)}
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = record.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps({**before, **seen, "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}, indent=0))
    fresh.replace(record)
    for former in place.glob("*.json"):  # of a part of site.yml each, before there was one record
        if former != record:
            former.unlink()


def differences(place: Path, given: Any) -> list[Finding]:
    """Return how this host differs from its recorded state, and what of it cannot be seen; nothing without a record."""
    before = recorded(place)
    now = look(given.app, given, list(compare.PARTS)) if before else {}
    unseen = {part: why for part, why in now.items() if part in before and isinstance(why, str)}
    what = "cannot be compared with the healthy state"
    notes = [Finding(NOTE, f"the part {part} {what}: {why}", "") for part, why in unseen.items()]
    return [*compare.compare(before, now, given.app), *notes]


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path, help="directory of the record")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--part", action="append", default=[], help="record this part alone")
    parser.add_argument("--app", required=True, help="the installation's name")
    parser.add_argument("--unit", action="append", default=[])
    parser.add_argument("--redis", action="append", default=[])
    parser.add_argument("--monitoring", default="")
    given, _ = parser.parse_known_args()
    if given.write:
        now = look(given.app, given, given.part or list(compare.PARTS))
        write(given.place, now)
        print(json.dumps({part: state for part, state in now.items() if isinstance(state, str)}), flush=True)
    else:
        tell([asdict(found) for found in differences(given.place, given)])
    os._exit(0)  # without waiting for what hangs
