"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
EVERY = 0.2, 5.0  # seconds between two lines: on a terminal, and elsewhere


def progress(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Yield `items` while showing how many of `total` are done and the seconds left.

    On a terminal the line is redrawn; elsewhere a new line is printed.
    """
    start = last = time.monotonic()
    terminal = sys.stderr.isatty()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last < EVERY[not terminal] and done != total:
            continue
        last = now
        left = (now - start) / done * max(total - done, 0)
        line = f"{description}: {done}/{total}, {now - start:.0f} s, about {left:.0f} s left"
        start_of_line, end = ("\r\x1b[K", "" if done != total else "\n") if terminal else ("", "\n")
        print(f"{start_of_line}{line}", end=end, file=sys.stderr, flush=True)
