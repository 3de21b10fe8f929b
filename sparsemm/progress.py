"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], total: int, description: str, every: float = 5.0) -> Iterator[T]:
    """Yield `items` while showing how many of `total` are done and the seconds left.

    On a terminal the line is redrawn; elsewhere a new line is printed at most every `every` seconds.
    """
    start = last = time.monotonic()
    terminal = sys.stderr.isatty()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last < (0.2 if terminal else every) and done != total:
            continue
        last = now
        left = (now - start) / done * max(total - done, 0)
        line = f"{description}: {done}/{total}, {now - start:.0f} s, about {left:.0f} s left"
        if terminal:
            print(f"\r\x1b[K{line}", end="" if done != total else "\n", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
