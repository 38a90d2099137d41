"""What the loop of a process runs at the moment, for those who look from outside."""

import mmap
import struct
import time


class Step:
    """Memory that is shared with a process: the number of the run whose code its loop runs, and since when.

    It outlives the process, and so names the run that ended it.
    """

    FORM = struct.Struct("<qd")

    def __init__(self) -> None:
        """Allocate it, before the process is forked."""
        self._memory = mmap.mmap(-1, self.FORM.size)  # zeros

    def begin(self, number: int) -> None:
        """The code of a run begins to run."""
        self.FORM.pack_into(self._memory, 0, number, time.monotonic())

    def end(self) -> None:
        """The loop does something else, or waits."""
        self.FORM.pack_into(self._memory, 0, 0, 0.0)

    def now(self) -> tuple[int, float]:
        """Return the number of the run, 0 for none, and time.monotonic() when the step began."""
        number, since = self.FORM.unpack_from(self._memory, 0)
        return number, since
