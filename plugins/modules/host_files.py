#!/usr/bin/python
"""Ansible module: directories and small files of a host, all in one task."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shlex
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_files
short_description: Keep directories and small files as they are given
description:
  - Creates the directories, with their parents, then writes the files whose content or rights differ.
  - A link on the way is followed if root has made it, and rejected if a service has.
  - All files are validated before the first is put in place.
  - One task instead of one for each directory and file, which took half of a run that changes nothing.
  - The action plugin of the same name renders C(template) and reads C(src); contents are not logged on the host.
  - Not for secrets, whose content a diff would show. See M(secret_files).
options:
  directories:
    description: Each has C(path), and perhaps C(owner), C(group) and C(mode).
    type: list
    elements: dict
    default: []
  files:
    description:
      - Each has C(path), and one of C(content), C(template) and C(src), a template or a file of the role.
      - Perhaps C(vars), the template's own variables, C(owner), C(group), C(mode), and C(validate), a command that
        accepts the file %s.
      - That file has these rights, and lies beside its later place.
    type: list
    elements: dict
    default: []
"""

RETURN = r"""
changed_paths:
  description: Created or changed paths (in check mode, their preview).
  type: list
  returned: always
"""

LINKS = 40  # one behind the other, as many as the kernel follows

OWNER: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
}


def exists(database: Callable[[str], Any], name: str) -> bool:
    """Return whether a user or group exists; a number always does."""
    try:
        return name.isdigit() or bool(database(name))
    except KeyError:
        return False


def keep_rights(module: AnsibleModule, entry: dict[str, Any], changed: bool, path: Path | None = None) -> bool:
    """Give the entry's path, or this one, its owner, group and mode; return whether it is changed by now."""
    place = path or Path(entry["path"])
    if module.check_mode:
        known = exists(pwd.getpwnam, entry["owner"]) and exists(grp.getgrnam, entry["group"])
        # In check mode the path or its owner may be missing.
        if not place.exists() or not known:
            return True
    arguments = module.load_file_common_arguments(entry | {"path": str(place), "follow": True})
    return bool(module.set_fs_attributes_if_different(arguments, changed))


def enter(path: Path, create: Callable[[Path], None] | None = None) -> bool:
    """Make a directory the working directory, one name after the other; return whether it exists.

    A service that owns one of its parents may have put a link there: only root's links are followed. From here on the
    directory is ".", whatever becomes of its name.

    Args:
        path: absolute.
        create: is called in a directory that was just made, with its path; without it nothing is made.

    Raises:
        PermissionError: there is a link of somebody else.
        OSError: a name is that of a file, or the directory cannot be made.
    """
    os.chdir("/")
    left, here, links = list(path.parts[1:]), Path("/"), 0
    while left:
        name = left.pop(0)
        try:
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            if create is None:
                return False
            os.mkdir(name)  # noqa: PTH102 - below the working directory
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            os.fchdir(handle)
            os.close(handle)
            here /= name
            create(here)
            continue
        except NotADirectoryError:
            found = os.lstat(name)
            links += 1
            if not stat.S_ISLNK(found.st_mode) or links > LINKS:
                raise
            if found.st_uid not in (0, os.geteuid()):
                raise PermissionError(errno.EPERM, f"{here / name} is a link of {owner(found.st_uid)}") from None
            target = os.readlink(name)  # noqa: PTH115 - below the working directory
            left = [part for part in target.split("/") if part] + left
            if target.startswith("/"):
                os.chdir("/")
                here = Path("/")
            continue
        os.fchdir(handle)
        os.close(handle)
        here /= name
    return True


def owner(number: int) -> str:
    """Return a user's name, or its number."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def keep_directory(module: AnsibleModule, entry: dict[str, Any]) -> bool:
    """Create a directory, or correct its rights; return whether that was needed. Created parents get its rights."""
    made = []

    def keep(path: Path) -> None:
        made.append(path)
        keep_rights(module, entry, changed=True, path=Path())

    # A link that leads nowhere is an error in check mode, too.
    if not enter(Path(entry["path"]), None if module.check_mode else keep):
        return True
    return keep_rights(module, entry, bool(made), path=Path())


def staged(module: AnsibleModule, entry: dict[str, Any]) -> Path:
    """Return a file beside the entry's path, with its content and rights, which its validator has accepted."""
    path = Path(entry["path"])
    if not path.parent.is_dir():
        module.fail_json(msg=f"{path} has no directory: name {path.parent} in directories.")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    module.add_cleanup_file(name)
    with os.fdopen(handle, "wb") as file:
        file.write(entry["content"].encode())
    keep_rights(module, entry, changed=True, path=Path(name))
    if entry["validate"]:
        code, output, error = module.run_command(entry["validate"].replace("%s", shlex.quote(name)))
        if code != 0:
            said = " ".join((error + output).split()) or f"exit status {code}"
            module.fail_json(msg=f"{path} is left as it was, because its new content is not valid: {said}")
    return Path(name)


def reject(module: AnsibleModule, entry: dict[str, Any]) -> None:
    """Fail where an entry cannot become a file."""
    path, validate = Path(entry["path"]), entry["validate"]
    if path.is_dir():
        module.fail_json(msg=f"{path} is a directory, but must be a file: move it away.")
    if validate is not None and "%s" not in validate:
        module.fail_json(msg=f"{path}: validate is '{validate}', but must hold %s, the file.")


def keep_files(module: AnsibleModule, entries: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, str]]]:
    """Write the files that differ, and correct rights; return the changed paths and what changed in them.

    Whatever can fail comes before the first file is put in place: what a failed task has written notifies no handler.
    """
    changed, diff, stages = [], [], []
    for entry in entries:
        reject(module, entry)
    for entry in entries:
        path = Path(entry["path"])
        try:
            enter(path.parent)
            before = path.read_bytes() if path.is_file() else None
            if before == entry["content"].encode() and not path.is_symlink():
                if keep_rights(module, entry, changed=False):
                    changed.append(str(path))
                continue
            if not module.check_mode:
                stages.append((staged(module, entry), path))
        except OSError as error:
            module.fail_json(msg=f"{path} cannot be written: {error.strerror}.")
        changed.append(str(path))
        headers = {"before_header": str(path) if before is not None else "", "after_header": str(path)}
        diff.append(headers | {"before": (before or b"").decode(errors="replace"), "after": entry["content"]})
    for stage, path in stages:
        try:
            stage.replace(path)
        except OSError as error:
            module.fail_json(msg=f"{path} cannot be written: {error.strerror}.")
    return changed, diff


def main() -> None:
    """Run the module."""
    file_options = {
        "mode": {"type": "raw", "default": "0644"},
        "content": {"type": "str", "required": True},
        "validate": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": OWNER | {"mode": {"type": "raw", "default": "0755"}},
            },
            "files": {"type": "list", "elements": "dict", "default": [], "options": OWNER | file_options},
        },
        supports_check_mode=True,
    )
    created = []
    for entry in module.params["directories"]:
        try:
            if keep_directory(module, entry):
                created.append(entry["path"])
        except OSError as error:
            module.fail_json(msg=f"{entry['path']} cannot be created: {error.strerror}.")
    changed, diff = keep_files(module, module.params["files"])
    module.exit_json(changed=bool(created or changed), changed_paths=created + changed, diff=diff)


if __name__ == "__main__":
    main()
