"""Backups of Redis instances: look at them, take one, try one, put data in place, count what is there.

Started on the host as root. It opens what root alone may open, then is the redis user for good: whatever that user has
put in the place of its data leads to nothing that is not its own. What it finds it prints as JSON; what it refuses it
says in one sentence on standard error.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from hosttools.backup.archive import choose
from hosttools.backup.host import become_redis, make_for_redis, open_archive, refuse
from hosttools.backup.restore import attempt, put, verify
from hosttools.backup.take import look, take
from hosttools.redis_client import DATA, Instance


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, does, options in (
        ("look", "whose data each instance has", ("host",)),
        ("take", "write an archive", ("host", "archive", "recipient")),
        ("choose", "which archives are to be restored where", ("path", "instance", "host", "known")),
        ("try", "unpack and try an archive", ("archive", "directory")),
        ("put", "put data in place of what there is", ("directory", "aside")),
        ("verify", "compare with what was tried", ("directory",)),
    ):
        command = verbs.add_parser(verb, help=does)
        if verb != "choose":
            command.add_argument("instances", nargs="+", metavar="INSTANCE")
        for option in options:
            command.add_argument(f"--{option}", required=True)
    arguments = parser.parse_args()
    if arguments.verb == "choose":
        known = json.loads(arguments.known)
        # The key alone, on standard input: an argument is everybody's to see.
        identity = sys.stdin.read().strip()
        print(json.dumps(choose(Path(arguments.path), arguments.instance, arguments.host, known, identity)))
        return
    try:
        print(answer(arguments, [Instance(name) for name in arguments.instances]))
    except OSError as error:
        refuse(f"{error.strerror}: {error.filename!a}.")


def answer(arguments: argparse.Namespace, instances: list[Instance]) -> str:
    """Prepare as root what the verb needs, do it as the redis user, and return what is to be said."""
    instance = instances[0]
    if arguments.verb == "look":
        become_redis()
        return json.dumps([look(each, arguments.host) for each in instances])
    if arguments.verb == "take":
        with open_archive(Path(arguments.archive)) as archive:
            become_redis()
            return json.dumps(take(instance, arguments.host, archive, arguments.recipient))
    directory = Path(arguments.directory)
    if arguments.verb == "put":
        aside = Path(arguments.aside)
        if aside.exists():
            refuse(f"{aside} is there already.")
        make_for_redis(aside)
        if not DATA.exists():
            make_for_redis(DATA)
        become_redis()
        put(instance, directory, aside)
        return ""
    if arguments.verb == "verify":
        become_redis()
        return verify(instance, directory)
    shutil.rmtree(directory, ignore_errors=True)
    make_for_redis(directory)
    with Path(arguments.archive).open("rb") as archive:
        become_redis()
        return attempt(instance, archive, directory)
