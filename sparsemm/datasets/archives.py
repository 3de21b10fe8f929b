"""Finds files by name in a place and in the zip and tar archives that it holds, whatever their folders."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Self

from sparsemm.datasets.data_errors import data_errors
from sparsemm.errors import DataError
from sparsemm.fetch import File, Place
from sparsemm.files import plain_name

LARGEST = 2**28  # bytes of an image or label file that is read at once
_Opener = Callable[[], IO[bytes]]


def lines(handle: IO[bytes], where: str) -> Iterator[tuple[int, bytes | DataError]]:
    """Yields (number from 1, text) of the lines of a file that are not blank.

    A DataError takes the place of a line that is too large, and of the rest of a file that cannot be read to its end.
    """
    number = 0
    try:
        with data_errors(where):
            while text := handle.readline(LARGEST + 1):
                number += 1
                if len(text) > LARGEST:
                    while text and not text.endswith(b"\n"):
                        text = handle.readline(LARGEST)
                    yield number, DataError(f"line {number} is larger than {LARGEST} bytes", where=where)
                elif text.strip():
                    yield number, text
    except DataError as error:
        yield number + 1, error


class Members:
    """The files of a place and of its archives, by their names without folders.

    Archives are searched one after the other, and only as far as needed. Of a remote zip archive only the table of
    contents and the necessary members are downloaded; a compressed tar is read up to the necessary member. A damaged
    archive ends where the damage begins: see `damage`.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._known: dict[str, tuple[str, _Opener]] = {}
        self._damage: list[DataError] = []
        self._rest = self._scan()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _scan(self) -> Iterator[tuple[str, str, _Opener]]:
        """Yields (name without folders, where, opener): plain files first, then those in archives."""
        archives = []
        for name, file in self._place.files.items():
            if name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz")):
                archives.append(file)
            else:
                yield PurePosixPath(name).name, f"{self._place.address}/{name}", file.open
        for file in archives:
            where = f"{self._place.address}/{file.name}"
            try:
                with data_errors(where, "not a readable archive"):
                    for path, opener in self._archive(file):
                        inner = plain_name(path)
                        yield PurePosixPath(inner).name, f"{where}/{inner}", opener
            except DataError as error:
                self._damage.append(error)

    def _archive(self, file: File) -> Iterator[tuple[str, _Opener]]:
        """Yields (path, opener) of the files in an archive."""
        handle = self._open.enter_context(file.open())
        if file.name.lower().endswith(".zip"):
            folder = self._open.enter_context(zipfile.ZipFile(handle))
            for info in folder.infolist():
                if not info.is_dir():
                    yield info.filename, partial(folder.open, info)
        else:
            packed = self._open.enter_context(tarfile.open(fileobj=handle, mode="r:*"))
            for member in packed:
                if member.isfile():
                    yield member.name, partial(_extract, packed, member)

    def damage(self) -> Iterator[DataError]:
        """Yields the archives that proved damaged since the last call."""
        while self._damage:
            yield self._damage.pop(0)

    def names(self) -> list[str]:
        """Returns every name; this reads the tables of contents of all archives."""
        for _ in self._more():
            pass
        return sorted(self._known)

    def _more(self) -> Iterator[str]:
        for name, where, opener in self._rest:
            self._known.setdefault(name, (where, opener))
            yield name

    def find(self, *wanted: str) -> str | None:
        """Returns the first of the wanted names that exists."""
        names = [plain_name(name) for name in wanted]
        for name in names:
            if name in self._known:
                return name
        return next((name for name in self._more() if name in names), None)

    def open(self, name: str) -> IO[bytes]:
        """Opens a file that `find` or `names` returned."""
        return self._known[name][1]()

    def read(self, name: str) -> bytes:
        """Reads the whole of a file that `find` or `names` returned.

        Raises DataError if its archive is damaged there, or it is larger than `LARGEST`.
        """
        where, opener = self._known[name]
        with data_errors(where), opener() as handle:
            data = handle.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise DataError(f"larger than {LARGEST} bytes", where=where)
        return data


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    handle = packed.extractfile(member)
    assert handle is not None  # links and folders were left out
    return handle
