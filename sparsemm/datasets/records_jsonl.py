"""The format for your own data: JSON lines that name an image and the text on it.

{"image": "pages/1.png", "entries": [{"text": "Total", "box": [12, 40, 88, 61]}]}
"""

from __future__ import annotations

import json
import posixpath
from functools import partial
from pathlib import PurePosixPath

from sparsemm.datasets.archives import LARGEST, lines
from sparsemm.datasets.images import clip, decode
from sparsemm.datasets.records import Entry, Record, Row, Rows
from sparsemm.errors import DataError
from sparsemm.fetch import Place
from sparsemm.files import plain_name


def rows(place: Place, split: str | None, start: int) -> Rows:
    """Yields the lines of <split>.jsonl, or of every .jsonl file by name, from `start` on; blank lines do not count.

    Raises DataError if there is no such file, and FetchError if it cannot be downloaded.
    """
    names = [name for name in place.files if name.endswith(".jsonl")]
    chosen = [name for name in names if split is None or PurePosixPath(name).stem == split]
    if not chosen:
        what = f"no {split}.jsonl" if split else "no .jsonl file"
        raise DataError(what, where=place.address, hint=f"there: {', '.join(names) or 'none'}")
    count = 0
    for name in chosen:
        with place.files[name].open() as handle:
            for number, text in lines(handle, f"{place.address}/{name}"):
                count += 1
                if count <= start:
                    continue
                if isinstance(text, DataError):
                    yield text
                else:
                    yield Row(f"{place.address}/{name}, line {number}", partial(_record, place, name, number, text))


def _record(place: Place, file: str, number: int, text: bytes, source: str, licence: str) -> Record:
    """Reads one line: `image`, a path from the JSONL file's folder; `entries` of `text`, `box` (x0, y0, x1, y1 in
    pixels) and optionally `kind` (default "word"); and optionally `id` (default: file and line number).

    Raises DataError if the line is no such object, or image or boxes do not fit, and FetchError if the image cannot be
    downloaded.
    """
    where = f"{place.address}/{file}, line {number}"
    try:
        value = json.loads(text)
        path, raw_entries = value["image"], value["entries"]
        fits = isinstance(path, str) and isinstance(raw_entries, list) and set(value) <= {"id", "image", "entries"}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"not an object with image and entries: {error!r}", where=where) from error
    if not fits:
        raise DataError("not an object with image and entries, and optionally id", where=where)
    name = plain_name(posixpath.normpath(posixpath.join(posixpath.dirname(file), path)))
    if name not in place.files:  # so no name leads out of the place
        raise DataError(f"no file {path!r}", where=where, hint="paths count from the folder of the JSONL file")
    if place.files[name].size > LARGEST:
        raise DataError(f"{path} is larger than {LARGEST} bytes", where=where)
    with place.files[name].open() as handle:
        image = decode(handle.read(), f"{place.address}/{name}")
    entries = []
    for index, entry in enumerate(raw_entries):
        at = f"{where}, entry {index}"
        is_text = isinstance(entry, dict) and isinstance(entry.get("text"), str)
        if not is_text or set(entry) - {"text", "box", "kind"}:
            raise DataError("not an object with text and box, and optionally kind", where=at)
        entries.append(Entry(entry["text"], clip(entry.get("box", ()), image.size, at), entry.get("kind", "word")))
    identity = value.get("id", f"{PurePosixPath(file).stem}-{number}")
    if not isinstance(identity, str):
        raise DataError("id is not text", where=where)
    return Record(identity, image, tuple(entries), source, licence)
