"""A place that holds named files, whatever protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class File:
    """One file of a place.

    Attributes:
        name: path inside the place, with slashes.
        size: in bytes.
        open: gives it as a seekable binary file; what is never read is never fetched.
        save: writes the whole file to a path, atomically.
    """

    name: str
    size: int
    open: Callable[[], BinaryIO]
    save: Callable[[Path], None]


@dataclass(frozen=True)
class Place:
    """What a source holds at one revision.

    Attributes:
        address: of the place, without its revision: hub:owner/name, s3://bucket/prefix, or a local path.
        revision: hub commit, or 16 hex digits that change when a file does.
        licence: what the source says of itself; None if it says nothing.
        files: by name, sorted.
    """

    address: str
    revision: str
    licence: str | None
    files: dict[str, File]
