"""What is going on, on stderr."""

from __future__ import annotations

import sys
import time


class Progress:
    """Tells what is being measured and how long it will still take.

    :param total: number of measurements
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = time.monotonic()

    def begin(self, what: str) -> None:
        """The next measurement has begun."""
        passed = time.monotonic() - self._began
        left = f", about {_clock(passed / self._done * (self._total - self._done))} left" if self._done else ""
        self._done += 1
        print(f"[{self._done}/{self._total}, {_clock(passed)}{left}] {what} ...", end=" ", file=sys.stderr)
        sys.stderr.flush()

    def end(self, outcome: str) -> None:
        """It is over."""
        print(outcome, file=sys.stderr)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
