"""Backups of Redis instances: look at them, take one, try one, put data in place, count what is there.

Started on the host as root. It opens what root alone may open, then is the redis user for good: whatever that user has
put in the place of its data leads to nothing that is not its own. What it finds it prints as JSON; what it rejects it
says in one sentence on standard error.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from hosttools.backup import archive, host, restore, take
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
        print(json.dumps(archive.choose(Path(arguments.path), arguments.instance, arguments.host, known, identity)))
        return
    try:
        print(answer(arguments, [Instance(name) for name in arguments.instances]))
    except OSError as error:
        host.reject(f"{error.strerror}: {error.filename!a}.")


def answer(arguments: argparse.Namespace, instances: list[Instance]) -> str:
    """Prepare as root what the verb needs, do it as the redis user, and return what is to be said."""
    instance = instances[0]
    if arguments.verb == "look":
        host.become_redis()
        return json.dumps([take.look(each, arguments.host) for each in instances])
    if arguments.verb == "take":
        with host.open_archive(Path(arguments.archive)) as file:
            host.become_redis()
            return json.dumps(take.take(instance, arguments.host, file, arguments.recipient))
    directory = Path(arguments.directory)
    if arguments.verb == "put":
        aside = Path(arguments.aside)
        if aside.exists():
            host.reject(f"{aside} is there already.")
        host.make_for_redis(aside)
        if not DATA.exists():
            host.make_for_redis(DATA)
        host.become_redis()
        restore.put(instance, directory, aside)
        return ""
    if arguments.verb == "verify":
        host.become_redis()
        return restore.verify(instance, directory)
    shutil.rmtree(directory, ignore_errors=True)
    host.make_for_redis(directory)
    with Path(arguments.archive).open("rb") as file:
        host.become_redis()
        return restore.attempt(instance, file, directory)
