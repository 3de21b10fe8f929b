"""ICDAR 2019 MLT as published: photographs, each with a text file of lines with quad, script and transcription.

    x1,y1,x2,y2,x3,y3,x4,y4,script,transcription

The archives (ImagesPart1.zip, train_gt_t13.zip, ...) may be packed or unpacked.
"""

from __future__ import annotations

from functools import partial
from pathlib import PurePosixPath

from sparsemm.datasets.archives import Members
from sparsemm.datasets.images import bounds, clip, decode, reading_order
from sparsemm.datasets.records import Entry, Record, Row, Rows
from sparsemm.errors import DataError
from sparsemm.fetch import Place

SCRIPTS = ("Arabic", "Latin", "Chinese", "Japanese", "Korean", "Bangla", "Hindi", "Symbols", "Mixed", "None")
UNREADABLE = "###"
IMAGES = (".jpg", ".png", ".gif", ".jpeg", ".JPG", ".PNG")


def rows(place: Place, split: str | None, start: int) -> Rows:
    """Yields the label files by name from `start` on; a split is the beginning of their names (tr for training).

    Raises DataError if there is none, and FetchError if a file cannot be downloaded.
    """
    with Members(place) as members:
        stems = sorted((name.removeprefix("gt_"), name) for name in members.names() if name.endswith(".txt"))
        chosen = [name for stem, name in stems if "_img_" in stem and stem.startswith(split or "")]
        damage = list(members.damage())
        yield from damage
        if not chosen and not damage:
            hint = "expected tr_img_00001.txt, ..., or an archive of them"
            raise DataError("no label file", where=place.address, hint=hint)
        for name in chosen[start:]:
            where = f"{place.address}: {name}"
            yield Row(where, partial(_record, members, name, where))


def _record(members: Members, name: str, where: str, source: str, licence: str) -> Record:
    """Reads one photograph; a box is the upright one around its quad, and unreadable words (###) are left out.

    Raises DataError if a line is not as published, or there is no such image, and FetchError if a file cannot be
    downloaded.
    """
    stem = PurePosixPath(name).stem.removeprefix("gt_")
    try:
        text = members.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}", where=where) from error
    member = members.find(*(stem + ending for ending in IMAGES))
    if member is None:
        raise DataError(f"no image {stem}", where=where)
    image = decode(members.read(member), f"{where}: {member}")
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        at = f"{where}, line {number}"
        *fields, words = line.rstrip("\r").split(",", 9)  # the transcription may hold commas
        if len(fields) != 9 or fields[8] not in SCRIPTS:
            raise DataError("not x1,y1,...,y4,script,transcription", where=at)
        if words.strip() != UNREADABLE:
            quad = [(fields[i], fields[i + 1]) for i in range(0, 8, 2)]
            box = clip(bounds(quad, at), image.size, at)  # type: ignore[arg-type]
            # Chinese and Japanese are labelled by line, the others by word.
            kind = "line" if fields[8] in ("Chinese", "Japanese") else "word"
            entries.append(Entry(words.strip(), box, kind))
    return Record(f"mlt2019-{stem}", image, reading_order(entries), source, licence)
