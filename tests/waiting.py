"""Waiting for another thread or process: until it has done its part. How long that takes is the machine's affair."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 600  # seconds: who waits that long waits for something that hangs, however busy the machine is


def until(condition: Callable[[], Any], going_on: Callable[[], bool] = lambda: True) -> Any:
    """What a condition gives, as soon as that is true; fails where what it comes from is over, or hangs."""
    end = time.monotonic() + LONGEST
    while True:
        last = not going_on()  # asked first: what ends may have done its part just before
        if found := condition():
            return found
        assert not last, "it ended, and what was waited for had not come about"
        assert time.monotonic() < end, "what was waited for did not come about"
        time.sleep(0.01)


@contextmanager
def little_work() -> Iterator[None]:
    """Fails where the block takes a minute of this process's own time, other processes' not counted.

    For input that a bad form would search for minutes or for ever, and a good one reads in less than a second.
    """
    start = time.process_time()
    yield
    assert time.process_time() - start < 60
