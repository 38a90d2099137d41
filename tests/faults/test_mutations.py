"""What `make faults` does to hosts: scripts that a shell can read, and for a seed always the same."""

from __future__ import annotations

import subprocess
from random import Random

from tests.faults.mutations import LISTING, mutation

FILES = [("d", "/var/lib/redis"), ("f", "/etc/typesafe/it's odd"), ("f", "/dev/null")]


def test_every_kind_of_change_is_drawn_and_can_be_run() -> None:
    drawn = [mutation(Random(seed), FILES) for seed in range(600)]  # noqa: S311 - no secret
    assert drawn == [mutation(Random(seed), FILES) for seed in range(600)]  # noqa: S311
    assert len({each.what for each in drawn}) > 150
    scripts = "\n".join(each.script for each in drawn) + LISTING
    subprocess.run(["bash", "-n"], input=scripts, text=True, check=True)
    assert all(each.names and all(each.names) for each in drawn)
