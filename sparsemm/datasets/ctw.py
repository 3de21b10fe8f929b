"""Chinese Text in the Wild as published: street photographs, a quad for every character, characters in lines.

One JSON line an image: file_name, and annotations = [[{"text", "polygon": four (x, y)}, ...], ...]. The archives
(ctw-annotations.tar.gz, ctw-trainval-01-of-26.tar, ...) may lie there as they are, or unpacked.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass

from sparsemm.datasets.faults import readable
from sparsemm.datasets.images import bounds, clip, decode, reading_order
from sparsemm.datasets.members import Members, lines
from sparsemm.datasets.records import Entry, Record
from sparsemm.errors import DataError
from sparsemm.fetch import Place


@dataclass(frozen=True)
class Photo:
    """One line of the annotations, not parsed yet."""

    members: Members
    where: str
    text: bytes


def rows(place: Place, split: str | None, start: int) -> Generator[Photo | DataError, None, None]:
    """The lines of <split>.jsonl (default train) from `start` on; only train and val are published with text.

    Raises:
        DataError: if there is no such file.
        FetchError: if a file cannot be had.
    """
    with Members(place) as members:
        name = members.find(f"{split or 'train'}.jsonl")
        damage = list(members.damage())
        yield from damage
        if name is None and not damage:
            hint = "expected it there, or in ctw-annotations.tar.gz"
            raise DataError(f"no {split or 'train'}.jsonl", where=place.address, hint=hint)
        if name is None:
            return
        where, count = f"{place.address}: {name}", 0
        with readable(where), members.open(name) as handle:
            for number, text in lines(handle, where):
                yield from members.damage()
                if count >= start:
                    yield text if isinstance(text, DataError) else Photo(members, f"{where}, line {number}", text)
                count += 1
        yield from members.damage()


def record(row: Photo, source: str, licence: str) -> Record:
    """One photograph; an entry is a line of characters, in the upright box around their quads.

    Raises:
        DataError: if the line is not as published, or there is no such image.
        FetchError: if a file cannot be had.
    """
    try:
        value = json.loads(row.text)
        name, identity, written = value["file_name"], value["image_id"], value["annotations"]
        texts = ["".join(one["text"] for one in line) for line in written]
        quads = [[point for one in line for point in one["polygon"]] for line in written]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"not an image with annotations: {error!r}", where=row.where) from error
    found = row.members.find(str(name).rpartition("/")[2])
    if found is None:
        raise DataError(f"no image {name}", where=row.where)
    image = decode(row.members.read(found), f"{row.where}: {found}")
    entries = [
        Entry(text, clip(bounds(points, at), image.size, at), "line")
        for number, (text, points) in enumerate(zip(texts, quads, strict=True))
        if (at := f"{row.where}, line of text {number}")
    ]
    return Record(f"ctw-{identity}", image, reading_order(entries), source, licence)
