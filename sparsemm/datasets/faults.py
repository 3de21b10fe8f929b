"""What files and rows raise, whatever library reads them, as errors that cost no more than that file or row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sparsemm.errors import DataError, SparseMMError
from sparsemm.files import room


@contextmanager
def readable(where: str, what: str = "cannot be read") -> Iterator[None]:
    """Make one DataError of whatever is raised inside: libraries have no end of exceptions for damaged files.

    Args:
        where: the file or row that is read.
        what: begins the error's text.

    Raises:
        DataError: if something inside raises an error that is not of this package.
        FetchError: if the disk is full.
    """
    try:
        with room(where):
            yield
    except SparseMMError:
        raise
    except Exception as error:
        # An address in memory would make other reasons of the same file at every run.
        text = " ".join(re.sub(r"0x[0-9a-fA-F]+", "0x...", str(error)).split())
        raise DataError(f"{what}: {text[:200] or type(error).__name__}", where=where) from error
