#!/usr/bin/python
"""Ansible module: directories of secret files, one for each service, and nothing else in them."""

from __future__ import annotations

import grp
import os
import shutil
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: secret_files
short_description: Keep a directory of secret files for each service
description:
  - Each service gets a directory that its group may enter, and in it a file for each secret that its group may read.
  - What is there besides is removed. Values are never shown.
  - One task instead of one for each file, which took a quarter of a whole run's time.
options:
  directory:
    description: The directory that holds those of the services. It must exist.
    type: path
    required: true
  groups:
    description: "Group of each service, by the service's name; a number where the group is a container's."
    type: dict
    required: true
  files:
    description: "By service: content of each file, by its name."
    type: dict
    required: true
"""

RETURN = r"""
paths:
  description: What was written, given other rights, or removed (in check mode, would be).
  type: list
  returned: always
"""

DIRECTORY_MODE = 0o750
FILE_MODE = 0o640


def write(path: Path, content: bytes, group_id: int) -> None:
    """Write a file atomically, readable for its group alone at any time."""
    handle, name = tempfile.mkstemp(dir=path.parent)  # readable by its owner alone
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        os.fchown(file.fileno(), -1, group_id)
        os.fchmod(file.fileno(), FILE_MODE)
    Path(name).replace(path)


def has_rights(path: Path, mode: int, group_id: int) -> bool:
    """Tell whether it is no link, and belongs to us and the group with this mode."""
    status = path.lstat()
    rights = (status.st_mode & 0o7777, status.st_uid, status.st_gid)
    return not path.is_symlink() and rights == (mode, os.geteuid(), group_id)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def keep_service(directory: Path, group_id: int, files: dict[str, str], check_mode: bool) -> list[Path]:
    """Synchronize one service's directory; return the changes."""
    changed = []
    if not directory.exists() or not has_rights(directory, DIRECTORY_MODE, group_id):
        changed.append(directory)
        if not check_mode:
            directory.mkdir(mode=0o700, exist_ok=True)
            os.chown(directory, os.geteuid(), group_id)
            directory.chmod(DIRECTORY_MODE)
    for name, text in files.items():
        path, content = directory / name, str(text).encode()
        if not path.is_file() or not has_rights(path, FILE_MODE, group_id) or path.read_bytes() != content:
            changed.append(path)
            if not check_mode:
                write(path, content, group_id)
    return changed


def unwanted(directory: Path, wanted: set[str]) -> list[Path]:
    """Return what lies in a directory besides what is wanted."""
    return [path for path in sorted(directory.iterdir()) if path.name not in wanted] if directory.is_dir() else []


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "groups": {"type": "dict", "required": True},
            "files": {"type": "dict", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    root, groups, check_mode = Path(module.params["directory"]), module.params["groups"], module.check_mode
    changed: list[Path] = []
    stale = unwanted(root, set(groups))
    for service, group in sorted(groups.items()):
        files = module.params["files"].get(service) or {}
        try:
            group_id = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            if not check_mode:
                module.fail_json(msg=f"The group {group} of {root / service} does not exist: create it first.")
            changed.append(root / service)  # check mode on a bare host
            continue
        changed += keep_service(root / service, group_id, files, check_mode)
        stale += unwanted(root / service, set(files))
    if not check_mode:
        for path in stale:
            remove(path)
    module.exit_json(changed=bool(changed or stale), paths=[str(path) for path in changed + stale])


if __name__ == "__main__":
    main()
