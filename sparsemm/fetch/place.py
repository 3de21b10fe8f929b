"""A place that holds named files, whatever protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from sparsemm.errors import FetchError
from sparsemm.files import plain_name


@dataclass(frozen=True)
class File:
    """One file of a place.

    Attributes:
        name: path inside the place, with slashes; see `by_name`.
        size: in bytes.
        open: gives it as a seekable binary file; what is never read is never fetched.
        save: writes the whole file to a path, atomically.
        path: of a local file; None for others.
    """

    name: str
    size: int
    open: Callable[[], BinaryIO]
    save: Callable[[Path], None]
    path: Path | None = None


@dataclass(frozen=True)
class Place:
    """What a source holds at one revision.

    Attributes:
        address: of the place, without its revision: hub:owner/name, s3://bucket/prefix, or a local path.
        revision: hub commit, or 16 hex digits that change when a file does.
        licence: what the source says of itself; None if it says nothing.
        files: by name, sorted; see `by_name`.
    """

    address: str
    revision: str
    licence: str | None
    files: dict[str, File]


def by_name(files: Iterable[File], address: str) -> dict[str, File]:
    """Files by their `plain_name`, sorted, which they bear from now on.

    Raises:
        FetchError: if the names of two differ in their Unicode normal form only.
    """
    named: dict[str, File] = {}
    for file in files:
        name = plain_name(file.name)
        if name in named:
            hint = "remove or rename one of them"
            raise FetchError(f"two files that both read {name}", where=address, hint=hint)
        named[name] = replace(file, name=name)
    return dict(sorted(named.items()))
