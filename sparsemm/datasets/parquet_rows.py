"""Reads rows of data sets that are published as parquet files, only as far as they are needed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sparsemm.datasets.data_errors import data_errors
from sparsemm.datasets.records import Record, Row, Rows
from sparsemm.errors import DataError
from sparsemm.fetch import Place


@dataclass(frozen=True)
class ParquetRow:
    """One row: its number among all rows of the split, its values, and the features that `datasets` declared."""

    number: int
    values: dict[str, Any]
    features: dict[str, Any]
    where: str


def parquet_rows(
    place: Place, split: str, columns: tuple[str, ...], start: int, record: Callable[[ParquetRow, str, str], Record]
) -> Rows:
    """Yields the rows of a split from `start` on; only these columns, of the necessary row groups, are downloaded.

    A DataError takes the place of a file without these columns, and of a file, or its rest, that cannot be read.

    Args:
        place: parquet files, named as on the hub (data/train-00000-of-00040-<hash>.parquet).
        split: the first part of their names, or their folder.
        columns: columns that a file must have.
        start: number of rows of the split to skip.
        record: function (row, source, licence) -> its record.

    Raises:
        DataError: if there is no file of the split.
        FetchError: if a file cannot be downloaded.
    """
    import pyarrow.parquet as pq

    names = [name for name in place.files if name.endswith(".parquet")]
    chosen = [name for name in names if _split_of(name) == split]
    if not chosen:
        splits = ", ".join(sorted({_split_of(name) for name in names})) or "no parquet file"
        raise DataError(f"no parquet file of split {split!r}", where=place.address, hint=f"there: {splits}")
    before = 0
    for name in chosen:
        where = f"{place.address}/{name}"
        try:
            with data_errors(where, "not readable as parquet"), place.files[name].open() as handle:
                # One row group after the other, and large ones page by page.
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
                            row = ParquetRow(number, values, features, f"{where}, row {number}")
                            yield Row(row.where, partial(record, row))
                        number += 1
        except DataError as error:
            yield error


def _split_of(name: str) -> str:
    """Returns train for data/train-00000-of-00040-<hash>.parquet, train.parquet and train/0000.parquet."""
    *folders, last = name.split("/")
    stem = last.removesuffix(".parquet")
    match = re.match(r"(.+?)-\d+-of-\d+", stem)
    if match:
        return match.group(1)
    return folders[-1] if folders and stem.isdecimal() else stem


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def image_bytes(row: ParquetRow) -> bytes:
    """Returns the encoded image of a row, which `datasets` stores as {bytes, path}.

    Raises DataError if there is none.
    """
    image = row.values["image"]
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        raise DataError("no image bytes", where=row.where)
    return data
