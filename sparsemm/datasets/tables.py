"""Rows of a data set that is kept as parquet files, read only as far as they are wanted."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from sparsemm.datasets.faults import readable
from sparsemm.errors import DataError
from sparsemm.fetch import Place


@dataclass(frozen=True)
class TableRow:
    """One row: its number among all rows of the split, its values, and the features that `datasets` declared."""

    number: int
    values: dict[str, Any]
    features: dict[str, Any]
    where: str


def table_rows(
    place: Place, split: str | None, columns: tuple[str, ...], start: int
) -> Generator[TableRow | DataError, None, None]:
    """The rows from `start` on; only these columns, of row groups as they are needed, are fetched.

    A DataError stands for a file without these columns, or for what cannot be read of one: all of it, or the rest.

    Args:
        place: with parquet files, named as the hub names them (data/train-00000-of-00040-<hash>.parquet).
        split: start of their names, or a folder of them; None takes all.
        columns: that a file must have.
        start: rows of the split to leave out.

    Raises:
        DataError: if there is no such file.
        FetchError: if a file cannot be had.
    """
    import pyarrow.parquet as pq

    names = [name for name in place.files if name.endswith(".parquet")]
    chosen = [name for name in names if split is None or _is_of(name, split)]
    if not chosen:
        there = ", ".join(sorted({_split_of(name) for name in names})) or "no parquet file"
        raise DataError(f"no parquet file of split {split!r}", where=place.address, hint=f"there: {there}")
    before = 0
    for name in chosen:
        where = f"{place.address}/{name}"
        try:
            with readable(where, "not readable as parquet"), place.files[name].open() as handle:
                # One row group after the other, and of large ones page by page.
                file = pq.ParquetFile(handle, pre_buffer=False, buffer_size=2**16)
                missing = [column for column in columns if column not in file.schema_arrow.names]
                if missing:
                    hint = f"there: {', '.join(file.schema_arrow.names)}"
                    raise DataError(f"no column {', '.join(missing)}", where=where, hint=hint)
                features = _features(file.schema_arrow.metadata)
                groups, first = [], before
                for group in range(file.metadata.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if before + rows > start:
                        groups.append(group)
                    elif not groups:
                        first = before + rows
                    before += rows
                number = first
                for batch in file.iter_batches(batch_size=1, row_groups=groups, columns=list(columns)):
                    for values in batch.to_pylist():
                        if number >= start:
                            yield TableRow(number, values, features, f"{where}, row {number}")
                        number += 1
        except DataError as error:
            yield error


def _split_of(name: str) -> str:
    """train of data/train-00000-of-00040-<hash>.parquet, of train.parquet and of train/0000.parquet."""
    *folders, last = name.split("/")
    stem = last.removesuffix(".parquet")
    found = re.match(r"(.+?)-\d+-of-\d+", stem)
    if found:
        return found.group(1)
    return folders[-1] if folders and stem.isdecimal() else stem


def _is_of(name: str, split: str) -> bool:
    return _split_of(name) == split


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    try:
        found = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def image_bytes(row: TableRow) -> bytes:
    """The encoded image of a row as `datasets` keeps it: {bytes, path}.

    Raises:
        DataError: if there are none.
    """
    image = row.values["image"]
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        raise DataError("no image bytes", where=row.where)
    return data
