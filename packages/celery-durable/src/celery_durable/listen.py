"""Runs a server that takes its listening socket as file descriptor 3: systemd's part, in a container.

``python -I -m celery_durable.listen PORT PROGRAM [ARG]...``: a command with ``--fd=3`` needs no other form there.
"""

import os
import socket
import sys

DESCRIPTOR = 3
BACKLOG = 2048  # as the unit's socket (roles/api/templates/api.socket.j2)


def main() -> None:
    """Listen at the port on all addresses of the container, and become the program."""
    port, *program = sys.argv[1:]
    listener = socket.create_server(("0.0.0.0", int(port)), backlog=BACKLOG)  # noqa: S104 - a container's own
    if listener.fileno() == DESCRIPTOR:
        os.set_inheritable(DESCRIPTOR, True)
    else:
        os.dup2(listener.fileno(), DESCRIPTOR)
    os.execvp(program[0], program)  # noqa: S606 - what the inventory named


if __name__ == "__main__":
    main()
