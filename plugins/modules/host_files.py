#!/usr/bin/python
"""Ansible module: directories and small files of a host, all in one task."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_files
short_description: Keep directories and small files as they are given
description:
  - Creates the directories, with their parents, then writes the files whose content or rights differ.
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
      - Perhaps C(owner), C(group), C(mode), and C(validate), a command that accepts the file %s.
    type: list
    elements: dict
    default: []
"""

RETURN = r"""
changed_paths:
  description: What was created or changed (in check mode, would be).
  type: list
  returned: always
"""

OWNER: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
}


def keep_rights(module: AnsibleModule, entry: dict[str, Any], changed: bool) -> bool:
    """Give an entry's path its owner, group and mode; return whether it is changed by now."""
    if not os.path.lexists(entry["path"]):
        return changed  # check mode
    arguments = module.load_file_common_arguments(entry)
    return bool(module.set_fs_attributes_if_different(arguments, changed))


def keep_directory(module: AnsibleModule, entry: dict[str, Any]) -> bool:
    """Create a directory or correct its rights; return whether that was needed."""
    missing = not Path(entry["path"]).is_dir()
    if missing and not module.check_mode:
        Path(entry["path"]).mkdir(parents=True)
    return keep_rights(module, entry, missing)


def staged(module: AnsibleModule, entry: dict[str, Any]) -> str:
    """Return a temporary file with the entry's content, which its validator has accepted."""
    if not Path(entry["path"]).parent.is_dir():
        module.fail_json(msg=f"{entry['path']} has no directory: name {Path(entry['path']).parent} in directories.")
    handle, name = tempfile.mkstemp()
    module.add_cleanup_file(name)
    with os.fdopen(handle, "wb") as file:
        file.write(entry["content"].encode())
    if entry["validate"]:
        code, output, error = module.run_command(entry["validate"] % name)
        if code != 0:
            said = " ".join((error + output).split()) or f"exit status {code}"
            module.fail_json(msg=f"{entry['path']} is left as it was, because its new content is not valid: {said}")
    return name


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
    changed = [entry["path"] for entry in module.params["directories"] if keep_directory(module, entry)]
    diff, places = [], []
    for entry in module.params["files"]:
        path = Path(entry["path"])
        before = path.read_bytes() if path.is_file() else None
        if before == entry["content"].encode() and not path.is_symlink():
            continue
        diff.append(
            {
                "before": (before or b"").decode(errors="replace"),
                "after": entry["content"],
                "before_header": str(path) if before is not None else "",
                "after_header": str(path),
            }
        )
        places.append((path, "" if module.check_mode else staged(module, entry)))
    for path, source in places:
        if source:
            module.atomic_move(source, str(path))
    written = {str(path) for path, _ in places}
    changed += [
        entry["path"] for entry in module.params["files"] if keep_rights(module, entry, entry["path"] in written)
    ]
    module.exit_json(changed=bool(changed), changed_paths=changed, diff=diff)


if __name__ == "__main__":
    main()
