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
    """One file of a place."""

    name: str  # path inside the place, with slashes, in the form of `plain_name`
    size: int  # bytes
    open: Callable[[], BinaryIO]  # opens it as a seekable binary file; only what is read is downloaded
    save: Callable[[Path], None]  # writes the whole file to a path, atomically
    path: Path | None = None  # path of a local file; None for others


@dataclass(frozen=True)
class Place:
    """The files of a source at one revision."""

    address: str  # address without the revision: hub:owner/name, s3://bucket/prefix, or a local path
    revision: str  # commit of the hub, or 16 hex digits that change when a file does
    licence: str | None  # licence that the source names, or None
    files: dict[str, File]  # files by name, sorted


def by_name(files: Iterable[File], address: str) -> dict[str, File]:
    """Returns the files by their `plain_name`, sorted, and renames them to it.

    Raises FetchError if two names differ in their Unicode normal form only.
    """
    named: dict[str, File] = {}
    for file in files:
        name = plain_name(file.name)
        if name in named:
            hint = "remove or rename one of them"
            raise FetchError(f"two files that both read {name}", where=address, hint=hint)
        named[name] = replace(file, name=name)
    return dict(sorted(named.items()))


def check_revision(revision: str, expected: str | None, address: str) -> None:
    """Checks a place's revision against the one in params.yaml; None accepts any. Raises FetchError if they differ."""
    if expected not in (None, revision):
        what = f"holds revision {revision}, params.yaml names {expected}"
        raise FetchError(what, where=address, hint="correct it if the change is wanted")
