"""What the preflight reads of a host."""

import grp
import pwd

from hosttools import preflight


def test_the_accounts_of_an_application_are_described_as_roles_want_them() -> None:
    users, groups = preflight.accounts("root")
    user = pwd.getpwnam("root")
    others = sorted(group.gr_name for group in grp.getgrall() if "root" in group.gr_mem)
    wanted = {"name": "root", "group": "root", "groups": others, "home": user.pw_dir, "shell": user.pw_shell}
    assert users == [wanted]
    assert groups == ["root"]
    assert preflight.accounts("roo") == ([], [])
