"""Shows the progress of long work on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
EVERY = 5.0  # seconds between two lines where stderr is not a terminal


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar without tqdm's thread that watches for stalls: models are shared by fork."""

    monitor_interval = 0


def progress(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Yields `items` while stderr shows how many of `total` are done: a bar on a terminal, seldom a line elsewhere."""
    pause = 0.1 if sys.stderr.isatty() else EVERY
    yield from Bar(items, total=total, desc=description, mininterval=pause, miniters=1)
