"""What looks at a host, with the standard library alone: one program, sent through a pipe."""

TIMEOUT = 3.0  # seconds for a command or an answer, unless its caller gives more
