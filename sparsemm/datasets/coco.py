"""The format of detection-datasets/coco: photographs, and names of objects with boxes.

The prompt for it is "Describe objects in the picture.".
"""

from __future__ import annotations

from typing import Any

from sparsemm.datasets.images import clip, decode
from sparsemm.datasets.parquet_rows import ParquetRow, image_bytes, parquet_rows
from sparsemm.datasets.records import Entry, Record, Rows
from sparsemm.errors import DataError
from sparsemm.fetch import Place


def rows(place: Place, split: str | None, start: int) -> Rows:
    """Returns the rows of a split (default val) from `start` on; see `parquet_rows`."""
    return parquet_rows(place, split or "val", ("image", "objects"), start, _record)


def _record(row: ParquetRow, source: str, licence: str) -> Record:
    """Reads one photograph with its objects in published order; boxes are (x0, y0, x1, y1) in pixels.

    Raises DataError if image, categories or boxes do not fit, or the file does not name the categories.
    """
    image = decode(image_bytes(row), row.where)
    names, objects = _category_names(row), row.values["objects"]
    entries = []
    try:
        for number, (index, box) in enumerate(zip(objects["category"], objects["bbox"], strict=True)):
            where = f"{row.where}, object {number}"
            if index < 0:
                raise DataError("has no category", where=where)
            entries.append(Entry(names[index], clip(box, image.size, where), "object"))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"objects are not lists of category and bbox: {error}", where=row.where) from error
    return Record(f"coco-{row.number:06d}", image, tuple(entries), source, licence)


def _category_names(row: ParquetRow) -> list[str]:
    """Returns the names of the categories from the features that `datasets` wrote into the file."""

    def search(value: Any) -> list[str] | None:
        if isinstance(value, dict):
            names = value.get("category")
            if isinstance(names, dict) and isinstance(names.get("names"), list):
                return [str(name) for name in names["names"]]
            value = list(value.values())
        if isinstance(value, list):
            return next((names for part in value if (names := search(part)) is not None), None)
        return None

    names = search(row.features.get("objects"))
    if not names:
        raise DataError("the file does not name the categories", where=row.where, hint="is it detection-datasets/coco?")
    return names
