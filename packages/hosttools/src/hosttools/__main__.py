"""A subcommand for each module: ``python3 -m hosttools doctor --help``; through a pipe ``python3 - doctor --help``."""

import importlib
import sys

COMMANDS = {
    "aof": "why a Redis cannot read or write its append-only file",
    "backup": "backups of Redis: look, take, choose, try, put, verify",
    "balancer": "what this host's balancer sees",
    "debug_mode": "let workers log at the level debug for some minutes",
    "disk_space": "what fills this host's file systems",
    "doctor": "everything that is wrong with this host",
    "evidence": "states, logs and figures for a bundle of evidence, secrets masked",
    "maintenance": "this host's part of the maintenance lists",
    "preflight": "what the preflight must know of a host",
    "redis_connection": "which hop between a service and Redis is broken",
    "redis_memory": "what fills a Redis",
    "releases": "whether this host runs the release that it should",
    "replication": "how this host's Redis servers and sentinel stand to the others",
    "restore": "bring this host back to its last healthy state",
    "state": "how this host differs from its last healthy state",
    "task_durations": "which tasks hit their time limits",
    "timeline": "what this host's logs say about one task",
    "unexpected_clients": "refusals of Redis, failed logins, clients of unknown hosts",
    "workers": "how the workers of this host are, and why",
}


def main() -> None:
    """Run the subcommand that the first argument names; only its modules are imported."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("hosttools COMMAND [ARGUMENT ...]; COMMAND --help says more.\n")
        print("\n".join(f"  {command:20}{what}" for command, what in COMMANDS.items()))
        return
    if name not in COMMANDS:
        sys.exit(f"hosttools has no command {name}: write one of {', '.join(COMMANDS)}.")
    # As argparse shows it.
    sys.argv[:2] = [f"hosttools {name}"]
    importlib.import_module(f"hosttools.{name}").main()


if __name__ == "__main__":
    main()
