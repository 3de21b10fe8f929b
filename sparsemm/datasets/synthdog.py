"""nnethercott/synthdog-en-detection: rendered pages, chunks of text with boxes from an OCR model."""

from __future__ import annotations

from collections.abc import Generator

from sparsemm.datasets.images import bounds, clip, decode
from sparsemm.datasets.records import Entry, Record
from sparsemm.datasets.tables import TableRow, image_bytes, table_rows
from sparsemm.errors import DataError
from sparsemm.fetch import Place

FIELD = "2_coord"  # [{"chunk": text, "coord": [[xmin, ymin], [xmax, ymax]] in pixels}]


def rows(place: Place, split: str | None, start: int) -> Generator[TableRow | DataError, None, None]:
    """The rows of a split (default train) from `start` on.

    Raises:
        DataError: if there is no file of the split.
        FetchError: if they cannot be had.
    """
    yield from table_rows(place, split or "train", ("image", FIELD), start)


def record(row: TableRow, source: str, licence: str) -> Record:
    """One page, its chunks in published order.

    Raises:
        DataError: if image or boxes do not fit.
    """
    image = decode(image_bytes(row), row.where)
    chunks = row.values[FIELD]
    if not isinstance(chunks, list) or not all(
        isinstance(one, dict) and {"chunk", "coord"} <= set(one) for one in chunks
    ):
        raise DataError(f"{FIELD} is not a list of chunk and coord", where=row.where)
    entries = []
    for number, one in enumerate(chunks):
        where = f"{row.where}, {FIELD} {number}"
        entries.append(Entry(str(one["chunk"]).strip(), clip(bounds(one["coord"], where), image.size, where), "line"))
    return Record(f"synthdog-{row.number:06d}", image, tuple(entries), source, licence)
