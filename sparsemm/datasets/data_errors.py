"""Turns whatever a library raises about a damaged file into a `DataError`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sparsemm.errors import DataError, SparseMMError
from sparsemm.files import room


@contextmanager
def data_errors(where: str, what: str = "cannot be read") -> Iterator[None]:
    """Raises exceptions of other libraries as a `DataError`, because damaged files can cause any of them.

    `where` is the file or row that is read; the message begins with `what`. Exceptions of this package pass. Raises
    FetchError if the disk is full.
    """
    try:
        with room(where):
            yield
    except SparseMMError:
        raise
    except Exception as error:
        # Addresses in memory would give the same file another message in every run.
        text = " ".join(re.sub(r"0x[0-9a-fA-F]+", "0x...", str(error)).split())
        raise DataError(f"{what}: {text[:200] or type(error).__name__}", where=where) from error
