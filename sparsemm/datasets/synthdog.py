"""The format of nnethercott/synthdog-en-detection: rendered pages, and chunks of text with boxes from an OCR model."""

from __future__ import annotations

from sparsemm.datasets.images import bounds, clip, decode
from sparsemm.datasets.parquet_rows import ParquetRow, image_bytes, parquet_rows
from sparsemm.datasets.records import Entry, Record, Rows
from sparsemm.errors import DataError
from sparsemm.fetch import Place

FIELD = "2_coord"  # [{"chunk": text, "coord": [[xmin, ymin], [xmax, ymax]] in pixels}]


def rows(place: Place, split: str | None, start: int) -> Rows:
    """Returns the rows of a split (default train) from `start` on; see `parquet_rows`."""
    return parquet_rows(place, split or "train", ("image", FIELD), start, _record)


def _record(row: ParquetRow, source: str, licence: str) -> Record:
    """Reads one page with its chunks in published order. Raises DataError if image or boxes do not fit."""
    image = decode(image_bytes(row), row.where)
    chunks = row.values[FIELD]
    if not isinstance(chunks, list) or not all(
        isinstance(chunk, dict) and {"chunk", "coord"} <= set(chunk) for chunk in chunks
    ):
        raise DataError(f"{FIELD} is not a list of chunk and coord", where=row.where)
    entries = []
    for number, chunk in enumerate(chunks):
        where = f"{row.where}, {FIELD} {number}"
        box = clip(bounds(chunk["coord"], where), image.size, where)
        entries.append(Entry(str(chunk["chunk"]).strip(), box, "line"))
    return Record(f"synthdog-{row.number:06d}", image, tuple(entries), source, licence)
