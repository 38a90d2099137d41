#!/usr/bin/python
"""Ansible module: run redis-cli with a hidden password."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: redis_cli
short_description: Run redis-cli with a hidden password
description:
  - Runs a command as M(ansible.builtin.command) does, with the password in its environment alone.
  - A task's C(environment) would be in the command line of the connection, which C(ps), sudo's log and C(-vvv) show.
options:
  argv:
    description: The command with its arguments.
    type: list
    elements: str
    required: true
  password:
    description: Password of redis-cli.
    type: str
    required: true
"""

RETURN = r"""
stdout:
  description: The command's output.
  type: str
  returned: always
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "argv": {"type": "list", "elements": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(skipped=True, changed=False, rc=0, stdout="", stderr="", msg="Not run in check mode.")
    environment = {"REDISCLI_AUTH": module.params["password"]}
    code, output, error = module.run_command(module.params["argv"], environ_update=environment)
    answer = {"rc": code, "stdout": output.rstrip("\r\n"), "stderr": error.rstrip("\r\n"), "changed": True}
    if code:
        module.fail_json(msg=f"redis-cli has failed with {code}.", **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
