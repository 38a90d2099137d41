#!/usr/bin/python
"""Ansible module: update Sentinel's configuration, which Sentinel itself rewrites."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: redis_sentinel_config
short_description: Change what is ours in a file that Redis Sentinel rewrites
description:
  - Sentinel keeps what it has learned (who is the primary, who else is there) in its configuration file. The module
    changes the options that are given, adds primaries that are missing, and leaves everything else as it is.
  - The file must not be changed while Sentinel runs. The module changes nothing and says so with C(stop_required),
    until C(write) is given.
options:
  path:
    description: The file.
    type: path
    required: true
  options:
    description: General options by name, which may be two words (sentinel announce-ip).
    type: dict
    required: true
  primaries:
    description: >-
      What is watched, by name - C(host) and C(port) of the first primary, used only when the name is not watched yet,
      and C(options), those of C(sentinel OPTION NAME VALUE).
    type: dict
    required: true
  quorum:
    description: Sentinels that must agree that a primary is away.
    type: int
    required: true
  write:
    description: Whether to write; Sentinel must be stopped.
    type: bool
    default: false
"""

RETURN = r"""
stop_required:
  description: Whether the file says something else and was not written.
  type: bool
  returned: always
"""

# What Sentinel learns by itself.
LEARNED = {"myid", "current-epoch", "config-epoch", "leader-epoch", "known-replica", "known-sentinel"}


def parse(text: str) -> list[list[str]]:
    """Return the words of each directive; Sentinel quotes what it likes."""
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


def wanted(
    now: list[list[str]], options: dict[str, Any], primaries: dict[str, dict[str, Any]], quorum: int
) -> list[list[str]]:
    """Return the directives that the file should have, what Sentinel has learned included."""
    learned = [words for words in now if words[0].lower() == "sentinel" and words[1] in LEARNED]
    watched = {words[2]: words[3:5] for words in now if words[:2] == ["sentinel", "monitor"]}
    lines = [[*name.split(), *shlex.split(str(value))] for name, value in options.items()]
    for name, primary in primaries.items():
        host, port = watched.get(name, [str(primary["host"]), str(primary["port"])])
        lines.append(["sentinel", "monitor", name, host, port, str(quorum)])
        lines += [["sentinel", option, name, str(value)] for option, value in primary["options"].items()]
    kept = [words for words in learned if len(words) < 4 or words[2] in primaries]
    return lines + kept


def differs(now: list[list[str]], target: list[list[str]]) -> bool:
    """Tell whether something of the target is not there, or a primary is watched that should not be."""
    there = {_comparable(words) for words in now}
    names = {words[2] for words in target if words[:2] == ["sentinel", "monitor"]}
    strange = {words[2] for words in now if words[:2] == ["sentinel", "monitor"]} - names
    return bool(strange) or any(_comparable(words) not in there for words in target)


def load(file: Path) -> str:
    """Return the text of the file; Sentinel's user may have put something else in its place.

    Raises:
        OSError: it is a link.
    """
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as text:
        return text.read()


def save(file: Path, target: list[list[str]], user: int = -1, group: int = -1) -> None:
    """Write the file, whole or not at all, for its owner and group.

    A new file with a name that nobody knows: Sentinel's user can write into the directory, and put links there.
    """
    handle, fresh = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with os.fdopen(handle, "w") as text:
        text.write("".join(" ".join(map(_quoted, words)) + "\n" for words in target))
        os.fchown(text.fileno(), user, group)
        os.fchmod(text.fileno(), 0o640)
    Path(fresh).replace(file)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "options": {"type": "dict", "required": True},
            "primaries": {"type": "dict", "required": True},
            "quorum": {"type": "int", "required": True},
            "write": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    file = Path(given["path"])
    try:
        now = parse(load(file)) if os.path.lexists(file) else []
    except OSError as error:
        module.fail_json(msg=f"{file} cannot be read ({error.strerror}), and must be a file: remove it.")
    target = wanted(now, given["options"], given["primaries"], given["quorum"])
    changed = differs(now, target)
    if changed and given["write"] and not module.check_mode:
        save(file, target, pwd.getpwnam("redis").pw_uid, grp.getgrnam("redis").gr_gid)
    module.exit_json(changed=changed and given["write"], stop_required=changed and not given["write"])


def _comparable(words: list[str]) -> tuple[str, ...]:
    name, *rest = words
    # Sentinel writes a user's rules in an order of its own.
    return name.lower(), *(sorted(rest) if name.lower() == "user" else rest)


def _quoted(word: str) -> str:
    return f'"{word}"' if word == "" or not word.isprintable() or set(word) & set(" \"'\\") else word


if __name__ == "__main__":
    main()
