"""Runs ansible-playbook as often as it is asked: to load Ansible takes as long as all else of a small run.

Each line of stdin is a run, as JSON: its arguments, and the files that take its output. Each line of stdout is the
exit status of one.
"""

from __future__ import annotations

import gc
import json
import os
import sys

from ansible.cli.playbook import main


def run(arguments: list[str], stdout: str, stderr: str) -> int:
    """Run ansible-playbook in this process; return its exit status."""
    files = ((os.devnull, os.O_RDONLY), (stdout, os.O_WRONLY), (stderr, os.O_WRONLY))
    for descriptor, (file, mode) in enumerate(files):
        os.dup2(os.open(file, mode), descriptor)
    try:
        main(["ansible-playbook", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    gc.freeze()
    for line in sys.stdin:
        if child := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(status, flush=True)  # noqa: T201 - the answer
        else:
            status = run(**json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            # What this process began with, like Ansible's directory for temporary files, is the others', too.
            os._exit(status)
