"""Files of a place and of the zip and tar archives in it, found by their names without folders."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Self

from sparsemm.datasets.faults import readable
from sparsemm.errors import DataError
from sparsemm.fetch import File, Place
from sparsemm.files import plain_name

LARGEST = 2**28  # bytes of an image or label file that is read as one piece
_Opener = Callable[[], IO[bytes]]


def lines(handle: IO[bytes], where: str) -> Iterator[tuple[int, bytes | DataError]]:
    """(number from 1, text) of the lines of a file that are not blank.

    A DataError stands for a line that is larger than any description of an image should be, and, as the last one, for
    the rest of a file that cannot be read to its end.
    """
    number = 0
    try:
        with readable(where):
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
    """What a place holds, archives looked into one after the other, and no further than needed.

    Of a remote archive only the table of contents and the wanted members are fetched; a compressed tar is read up to
    the wanted member. An archive that is damaged ends where the damage begins: see `damage`.
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
        """(name without folders, where, opener): plain files first, then archives by name."""
        archives = []
        for name, file in self._place.files.items():
            if name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz")):
                archives.append(file)
            else:
                yield PurePosixPath(name).name, f"{self._place.address}/{name}", file.open
        for file in archives:
            try:
                with readable(f"{self._place.address}/{file.name}", "not a readable archive"):
                    yield from self._archive(file)
            except DataError as error:
                self._damage.append(error)

    def damage(self) -> Iterator[DataError]:
        """The archives that proved damaged since the last call."""
        while self._damage:
            yield self._damage.pop(0)

    def _archive(self, file: File) -> Iterator[tuple[str, str, _Opener]]:
        where = f"{self._place.address}/{file.name}"
        handle = self._open.enter_context(file.open())
        if file.name.lower().endswith(".zip"):
            folder = self._open.enter_context(zipfile.ZipFile(handle))
            for one in folder.infolist():
                if not one.is_dir():
                    inner = plain_name(one.filename)
                    yield PurePosixPath(inner).name, f"{where}/{inner}", partial(folder.open, one)
        else:
            packed = self._open.enter_context(tarfile.open(fileobj=handle, mode="r:*"))
            for member in packed:
                if member.isfile():
                    inner = plain_name(member.name)
                    yield PurePosixPath(inner).name, f"{where}/{inner}", partial(_extract, packed, member)

    def names(self) -> list[str]:
        """Every name; all archives' tables of contents are read."""
        for _ in self._more():
            pass
        return sorted(self._known)

    def _more(self) -> Iterator[str]:
        for name, where, opener in self._rest:
            self._known.setdefault(name, (where, opener))
            yield name

    def find(self, *wanted: str) -> str | None:
        """The first of the wanted names that is there."""
        names = [plain_name(name) for name in wanted]
        for name in names:
            if name in self._known:
                return name
        return next((name for name in self._more() if name in names), None)

    def open(self, name: str) -> IO[bytes]:
        """A file that `find` or `names` has found."""
        return self._known[name][1]()

    def read(self, name: str) -> bytes:
        """The whole of a file that `find` or `names` has found.

        Raises:
            DataError: if its archive is damaged there, or it is larger than any image should be.
        """
        where, opener = self._known[name]
        with readable(where), opener() as handle:
            data = handle.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise DataError(f"larger than {LARGEST} bytes", where=where)
        return data


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    handle = packed.extractfile(member)
    if handle is None:  # cannot be: links and folders were left out
        raise tarfile.TarError(f"{member.name} is no file")
    return handle
