"""Repeats requests that fail temporarily, with growing pauses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 6
PAUSE = 0.5  # seconds before the second attempt; doubled before each later one
TIMEOUT = 30.0  # seconds without a byte after which a request has failed


def retry(action: Callable[[], T], is_temporary: Callable[[Exception], bool]) -> T:
    """Calls `action` up to `ATTEMPTS` times, as long as its exceptions are temporary, and returns its result.

    Raises the error of the last attempt, or the first that is not temporary.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except Exception as error:
            if not is_temporary(error):
                raise
        time.sleep(PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))  # spreads the attempts of several workers
    return action()
