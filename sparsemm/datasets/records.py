"""The record of all data sources: an image and the text on it, word by word."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from sparsemm.errors import DataError
from sparsemm.files import atomic_path

KINDS = ("word", "number", "key", "value", "line", "object")


@dataclass(frozen=True)
class Entry:
    """One piece of text and its place.

    Attributes:
        text: the text (or the object's name), not empty.
        box: (x0, y0, x1, y1) in pixels of the record's image, x0 < x1 and y0 < y1, inside the image.
        kind: one of `KINDS`.
    """

    text: str
    box: tuple[float, float, float, float]
    kind: str


@dataclass(frozen=True)
class Record:
    """An RGB image with its entries in reading order, its source and its licence.

    `remarks` describe visible text that is not among the entries. They are printed when the record is made, and not
    stored.
    """

    id: str
    image: Image.Image
    entries: tuple[Entry, ...]
    source: str
    licence: str
    remarks: tuple[str, ...] = ()

    def validate(self) -> Record:
        """Checks the record and returns it.

        Raises DataError if it does not fit the schema; the message names the record and the entry.
        """
        width, height = self.image.size
        record = f"record {self.id!r}"
        if not self.id or not self.source or not self.licence:
            raise DataError("id, source and licence must not be empty", where=record)
        if not _storable(self.id):
            raise DataError("id holds half a character", where=record)
        if self.image.mode != "RGB":
            raise DataError(f"image mode is {self.image.mode}, not RGB", where=record)
        for number, entry in enumerate(self.entries):
            where = f"{record}, entry {number}"
            if not entry.text.strip():
                raise DataError("text is empty", where=where)
            if not _storable(entry.text):
                raise DataError("text holds half a character", where=where)
            if entry.kind not in KINDS:
                raise DataError(f"kind {entry.kind!r} is unknown", where=where, hint=f"use one of {KINDS}")
            if len(entry.box) != 4 or not all(math.isfinite(value) for value in entry.box):
                raise DataError(f"box {entry.box} is not four finite numbers", where=where)
            x0, y0, x1, y1 = entry.box
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise DataError(f"box {entry.box} is empty or outside the {width}x{height} image", where=where)
        return self


@dataclass(frozen=True)
class Row:
    """A row of a data source that is not decoded yet."""

    where: str  # its place, for messages
    # function (source, licence) -> its record. It raises a DataError if the row does not fit the format
    read: Callable[[str, str], Record]


Rows = Generator[Row | DataError, None, None]  # a DataError takes the place of a row or file that cannot be read


def _storable(text: str) -> bool:
    """Returns whether UTF-8 can encode a text; it cannot encode a lone surrogate, which JSON can escape."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _schema() -> Any:
    import pyarrow as pa

    entry = pa.struct([("text", pa.string()), ("box", pa.list_(pa.float64(), 4)), ("kind", pa.string())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("image", pa.binary()),
            ("entries", pa.list_(entry)),
            ("source", pa.string()),
            ("licence", pa.string()),
        ]
    )


def write_records(
    path: str | Path, records: Iterable[Record], about: Callable[[], dict[str, Any]] | None = None
) -> int:
    """Writes records as parquet (images as PNG), atomically, and returns their number.

    Args:
        path: the file.
        records: the records; each is validated.
        about: called after the last record; its result is stored for `read_about`.

    Raises:
        DataError: if a record does not fit the schema or two share an id.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    seen: set[str] = set()
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, _schema(), compression="zstd") as writer:
        for record in records:
            record.validate()
            if record.id in seen:
                raise DataError("two records share this id", where=f"record {record.id!r}")
            seen.add(record.id)
            buffer = io.BytesIO()
            record.image.save(buffer, format="PNG")
            row = {
                "id": record.id,
                "image": buffer.getvalue(),
                "entries": [{"text": e.text, "box": list(e.box), "kind": e.kind} for e in record.entries],
                "source": record.source,
                "licence": record.licence,
            }
            writer.write_table(pa.Table.from_pylist([row], schema=_schema()))
        if about is not None:
            writer.add_key_value_metadata({"sparsemm": json.dumps(about(), sort_keys=True)})
    return len(seen)


def read_about(path: str | Path) -> dict[str, Any]:
    """Reads what `write_records` stored about the records: their source, and which rows were left out; {} if nothing.

    Raises DataError if the file is missing or is not parquet.
    """
    metadata = _open(Path(path)).metadata.metadata or {}
    about = json.loads(metadata.get(b"sparsemm", b"{}"))
    return about if isinstance(about, dict) else {}


def read_records(path: str | Path, limit: int | None = None) -> list[Record]:
    """Reads and validates the first `limit` (default: all) records of a parquet file.

    Raises DataError if the file is missing, is not parquet, has other columns, or holds a bad record.
    """
    import pyarrow as pa

    path = Path(path)
    file = _open(path)
    if not file.schema_arrow.equals(_schema()):
        raise DataError("columns differ from the record schema", where=str(path), hint="run the download stage again")
    records: list[Record] = []
    try:
        for batch in file.iter_batches(batch_size=64):
            for row in batch.to_pylist():
                if limit is not None and len(records) >= limit:
                    return records
                records.append(_record(row, path))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"damaged: {' '.join(str(error).split())}"
        raise DataError(what, where=str(path), hint="run the download stage again") from error
    return records


@contextmanager
def whole_images() -> Iterator[None]:
    """Refuses truncated images, although some libraries (lmms-eval's tasks) set Pillow to fill in the missing part."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError("no such file", where=str(path), hint="run the download stage first")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not a readable parquet file: {error}", where=str(path)) from error


def _record(row: dict[str, Any], path: Path) -> Record:
    try:
        with whole_images():
            image = Image.open(io.BytesIO(row["image"]))
            image.load()
        entries = tuple(Entry(e["text"], tuple(e["box"]), e["kind"]) for e in row["entries"])
    except (OSError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"unreadable image or entries: {error}", where=f"{path}, record {row['id']!r}") from error
    return Record(row["id"], image, entries, row["source"], row["licence"]).validate()
