"""Chinese Text in the Wild as published: street photographs, with a quad for every character, characters in lines.

Each JSON line is an image: file_name, and annotations = [[{"text", "polygon": four (x, y)}, ...], ...]. The archives
(ctw-annotations.tar.gz, ctw-trainval-01-of-26.tar, ...) may be packed or unpacked.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import islice

from sparsemm.datasets.archives import Members, lines
from sparsemm.datasets.data_errors import data_errors
from sparsemm.datasets.images import bounds, clip, decode, reading_order
from sparsemm.datasets.records import Entry, Record, Row, Rows
from sparsemm.errors import DataError
from sparsemm.fetch import Place


def rows(place: Place, split: str | None, start: int) -> Rows:
    """Yields the lines of <split>.jsonl (default train) from `start` on; only train and val are published with text.

    Raises DataError if there is no such file, and FetchError if a file cannot be downloaded.
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
        where = f"{place.address}: {name}"
        with data_errors(where), members.open(name) as handle:
            for number, text in islice(lines(handle, where), start, None):
                yield from members.damage()
                row = f"{where}, line {number}"
                yield text if isinstance(text, DataError) else Row(row, partial(_record, members, row, text))
        yield from members.damage()


def _record(members: Members, where: str, text: bytes, source: str, licence: str) -> Record:
    """Reads one photograph; an entry is a line of characters, in the upright box around their quads.

    Raises DataError if the line is not as published, or there is no such image, and FetchError if a file cannot be
    downloaded.
    """
    try:
        value = json.loads(text)
        name, identity, annotations = value["file_name"], value["image_id"], value["annotations"]
        texts = ["".join(character["text"] for character in line) for line in annotations]
        points = [[point for character in line for point in character["polygon"]] for line in annotations]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"not an image with annotations: {error!r}", where=where) from error
    member = members.find(str(name).rpartition("/")[2])
    if member is None:
        raise DataError(f"no image {name}", where=where)
    image = decode(members.read(member), f"{where}: {member}")
    entries = []
    for number, (line, points_of_line) in enumerate(zip(texts, points, strict=True)):
        at = f"{where}, line of text {number}"
        entries.append(Entry(line, clip(bounds(points_of_line, at), image.size, at), "line"))
    return Record(f"ctw-{identity}", image, reading_order(entries), source, licence)
