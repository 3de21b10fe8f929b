"""Repeat what may fail in passing, with growing pauses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 6
PAUSE = 0.5  # seconds before the second attempt; doubled before each later one
TIMEOUT = 30.0  # seconds without a byte, after which a request has failed


def patiently(action: Callable[[], T], passing: Callable[[Exception], bool]) -> T:
    """What `action` returns; up to `ATTEMPTS` times while what it raises is `passing`.

    Raises:
        whatever the last attempt raised.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except Exception as error:
            if not passing(error):
                raise
        time.sleep(PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))  # not all workers at the same moment
    return action()
