"""A bar on a terminal; elsewhere, as in a log file, a plain line from time to time."""

import sys
import time

from tqdm import tqdm

LINE_SECONDS = 30  # between two lines
DELAY = 2  # seconds before the bar shows


class ProgressBar:
    """Shows on stderr how many of `total` pictures are done. `what` is done with them; a quick job shows nothing.

    Use it as a context manager.
    """

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._num_done = total, what, 0
        self._bar = tqdm(total=total, desc=what, unit="picture", delay=DELAY, disable=None)  # None: only on a terminal
        self._last_line = time.monotonic()

    def update(self, num_pictures: int = 1) -> None:
        self._num_done += num_pictures
        self._bar.update(num_pictures)
        if self._bar.disable and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            print(f"{self._what}: {self._num_done:,} of {self._total:,}", file=sys.stderr, flush=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
