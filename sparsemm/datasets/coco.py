"""detection-datasets/coco: photographs, category names with boxes. Ask "Describe objects in the picture."."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from sparsemm.datasets.images import clip, decode
from sparsemm.datasets.records import Entry, Record
from sparsemm.datasets.tables import TableRow, image_bytes, table_rows
from sparsemm.errors import DataError
from sparsemm.fetch import Place


def rows(place: Place, split: str | None, start: int) -> Generator[TableRow | DataError, None, None]:
    """The rows of a split (default val) from `start` on.

    Raises:
        DataError: if there is no file of the split.
        FetchError: if they cannot be had.
    """
    yield from table_rows(place, split or "val", ("image", "objects"), start)


def record(row: TableRow, source: str, licence: str) -> Record:
    """One photograph with its objects in published order; boxes are (x0, y0, x1, y1) in pixels.

    Raises:
        DataError: if image, categories or boxes do not fit, or the file does not name the categories.
    """
    image = decode(image_bytes(row), row.where)
    names, objects = _categories(row), row.values["objects"]
    try:
        pairs = list(zip(objects["category"], objects["bbox"], strict=True))
        entries = tuple(
            Entry(names[index], clip(box, image.size, f"{row.where}, object {number}"), "object")
            for number, (index, box) in enumerate(pairs)
            if index >= 0 or _no_category(row, number)
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"objects are not lists of category and bbox: {error}", where=row.where) from error
    return Record(f"coco-{row.number:06d}", image, entries, source, licence)


def _no_category(row: TableRow, number: int) -> bool:
    raise DataError("has no category", where=f"{row.where}, object {number}")


def _categories(row: TableRow) -> list[str]:
    """Names of the categories, from the features that `datasets` wrote into the file."""

    def search(value: Any) -> list[str] | None:
        if isinstance(value, dict):
            names = value.get("category")
            if isinstance(names, dict) and isinstance(names.get("names"), list):
                return [str(name) for name in names["names"]]
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                if (found := search(one)) is not None:
                    return found
        return None

    found = search(row.features.get("objects"))
    if not found:
        raise DataError("the file does not name the categories", where=row.where, hint="is it detection-datasets/coco?")
    return found
