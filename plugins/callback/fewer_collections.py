"""Lets Python collect garbage less often: most of what a run makes lives to its end, and each task is a fork."""

from __future__ import annotations

import gc

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: fewer_collections
type: aggregate
short_description: Fewer collections of garbage in the controller
description:
  - Looking through all objects again and again takes a quarter of a run's CPU time.
"""
# New objects before a collection of the youngest, and collections of one generation before one of the next.
THRESHOLDS = (100_000, 20, 100)


class CallbackModule(CallbackBase):
    """Does all that it does when it is loaded."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "fewer_collections"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Set the thresholds, and leave out what is there already."""
        super().__init__()
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
