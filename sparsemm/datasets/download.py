"""The download stage: a declared data set becomes one parquet file of records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

from sparsemm import fetch
from sparsemm.datasets import coco, ctw, folder, mlt2019, pdf, synthdog
from sparsemm.datasets.faults import readable
from sparsemm.datasets.images import is_of_one_colour
from sparsemm.datasets.records import Record, write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import CorruptFetch, DataError, EmptyRecord, FetchError, ParamsError
from sparsemm.fetch import Place
from sparsemm.files import plain_name, room
from sparsemm.params import Params
from sparsemm.params.datasets import FolderParams, HubParams, PdfParams, S3Params, SyntheticParams
from sparsemm.progress import progress

STYLES = (PageStyle(1, 6, (3, 6)), PageStyle(2, 6, (6, 12)))  # one and two columns, two pages of each in turn

Outside = HubParams | S3Params | FolderParams | PdfParams

# How a format is read: (place, split, first row) -> rows; (row, source, licence) -> record.
FORMATS: dict[str, tuple[Callable[..., Generator[Any, None, None]], Callable[..., Record]]] = {
    "records_jsonl": (folder.rows, folder.record),
    "synthdog": (synthdog.rows, synthdog.record),
    "coco": (coco.rows, coco.record),
    "mlt2019": (mlt2019.rows, mlt2019.record),
    "ctw": (ctw.rows, ctw.record),
}


@dataclass
class Tally:
    """What became of a source's rows.

    Attributes:
        kept: rows that became records.
        empty: reasons of rows that have nothing to read (a page without a text layer, an image without words).
        bad: reasons of rows that do not fit the schema, and of files that cannot be read.
        suspicious: kept records whose picture is of one colour, as of an image that was decoded wrongly.
        partial: kept records that lack some of the text that is seen, and why.
    """

    kept: int = 0
    empty: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    suspicious: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)


def records(given: SyntheticParams) -> Iterator[Record]:
    """The records of a synthetic data set, in order; the same for the same params.

    Even and odd records have the same mix of styles, so that halves of a score table can be compared.
    """
    for index in range(given.samples):
        style = replace(STYLES[index // 2 % len(STYLES)], type_size=given.type_size)
        yield draw_record(given.split, given.seed, index, style)


def open_place(given: Outside, root: Path, work: Path) -> Place:
    """The files of a data set, at the revision that params.yaml names if it names one.

    Raises:
        FetchError: if they cannot be had, or the revision is another.
    """
    if isinstance(given, HubParams):
        place = fetch.hub(given.repo, work, given.revision)
    elif isinstance(given, S3Params):
        place = fetch.s3(given.location, work, given.revision)
    else:
        place = fetch.local(given.path, root, given.revision)
    if not place.files:
        raise FetchError("nothing is there", where=place.address, hint="check the spelling")
    return place


def drawn(given: Outside, place: Place, tally: Tally) -> Iterator[Record]:
    """Up to `samples` records of a place, bad and empty rows left out and counted in `tally`.

    Whatever a file or row raises costs that file or row. Only a source that cannot be reached, or a full disk, ends
    the run at once.

    Raises:
        DataError: if the files are not what the format says, more than `max_bad` of the rows are bad, or no record
            is left.
        FetchError: if a file cannot be had.
        ParamsError: if neither params.yaml nor the source names a licence.
    """
    licence = given.licence or place.licence
    if licence is None:
        hint = "write `licence` in params.yaml"
        raise ParamsError("the source does not name a licence", where=place.address, hint=hint)
    first, stop = given.rows or (0, None)
    rows: Generator[Any, None, None]
    record: Callable[..., Record]
    if isinstance(given, PdfParams):  # whose `rows` are documents
        rows, record, wanted = pdf.rows(place, first, stop), partial(pdf.record, dpi=given.dpi), None
    else:
        read, record = FORMATS[given.format]
        rows, wanted = (
            read(place, given.split and plain_name(given.split), first),
            None if stop is None else stop - first,
        )
    seen: set[str] = set()
    with closing(rows), readable(place.address):
        for row in islice(rows, wanted):
            try:
                if isinstance(row, DataError):  # a file, or the rest of one
                    raise row
                made = _read(record, row, f"{place.address}@{place.revision}", licence)
                if made.id in seen:
                    raise DataError("two records share this id", where=f"record {made.id!r}")
            except EmptyRecord as error:
                tally.empty.append(str(error))
            except DataError as error:
                tally.bad.append(str(error))
                if _too_many(given, tally, given.samples):  # even if all that are still wanted were good
                    break
            else:
                seen.add(made.id)
                tally.kept += 1
                tally.partial += made.remarks
                if is_of_one_colour(made.image):
                    tally.suspicious.append(f"record {made.id!r}: the picture is of one colour")
                yield made
                if tally.kept == given.samples:  # before the next row is asked for
                    break
    if _too_many(given, tally, tally.kept):
        what = f"{len(tally.bad)} rows are bad and {tally.kept} are good, the first bad one: {tally.bad[0]}"
        raise DataError(what, where=place.address, hint=f"more than max_bad, {given.max_bad:g} of all, allows")
    if not tally.kept:
        reason = f", {len(tally.empty)} have nothing to read" if tally.empty else ""
        if tally.bad:
            reason += f", {len(tally.bad)} are bad: {'; '.join(tally.bad[:3])}"
        raise DataError(f"no row became a record{reason}", where=place.address)


def _read(record: Callable[..., Record], row: Any, source: str, licence: str) -> Record:
    """One row as a valid record with something to read.

    Raises:
        DataError: if it is none, whatever the reader or a library below it raised.
        FetchError: if the source cannot be reached, or the disk is full.
    """
    with readable(getattr(row, "where", source)):
        made = _composed(record(row, source, licence)).validate()
    if not made.entries:
        raise EmptyRecord("nothing to read", where=f"record {made.id!r}")
    return made


def _composed(made: Record) -> Record:
    """The record with text as models write it (Unicode NFC); PDFs and labels may have letters and accents apart."""
    return replace(made, entries=tuple(replace(one, text=normalize("NFC", one.text)) for one in made.entries))


def _too_many(given: Outside, tally: Tally, good: int) -> bool:
    return len(tally.bad) > given.max_bad * (good + len(tally.bad))


def run(params: Params, key: str, root: Path = Path(".")) -> None:
    """Write artifacts/datasets/<key>.parquet, and say what was left out.

    What was fetched before a crash is not fetched again. A file that arrived damaged is fetched once more.

    Raises:
        ParamsError: if there is no such data set.
        DataError: if the source's files are not what params.yaml says.
        FetchError: if they cannot be had.
    """
    if key not in params.datasets:
        known = ", ".join(params.datasets) or "none yet"
        raise ParamsError(f"no data set {key!r}", where="params.yaml: datasets", hint=f"known: {known}")
    given = params.datasets[key]
    path = root / "artifacts" / "datasets" / f"{key}.parquet"
    work = root / "artifacts" / "work" / "download" / key
    if isinstance(given, SyntheticParams):
        with room(str(path)):
            write_records(work / path.name, progress(records(given), given.samples, f"download {key}"))
        _finish(work, path)
        return
    for attempt in (1, 2):
        place, tally = open_place(given, root, work), Tally()
        shown = progress(drawn(given, place, tally), given.samples, f"download {key}")
        try:
            with room(str(path)):
                write_records(work / path.name, shown, lambda t=tally, p=place: _about(p, t))  # type: ignore[misc]
            break
        except CorruptFetch:
            if attempt == 2:
                raise
    _finish(work, path)
    print(f"{key}: {tally.kept} records of {place.address}, revision {place.revision}")
    for name, reasons in (
        ("left out {} with nothing to read", tally.empty),
        ("left out {} bad", tally.bad),
        ("{} suspicious", tally.suspicious),
        ("{} without all that is seen", tally.partial),
    ):
        if reasons:
            print(f"{key}: {name.format(len(reasons))}, the first: {reasons[0]}")


def _finish(work: Path, path: Path) -> None:
    """Move the finished file out of its work folder; what a killed process left half-written goes with the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(work / path.name, path)
    shutil.rmtree(work, ignore_errors=True)


def _about(place: Place, tally: Tally) -> dict[str, Any]:
    reasons = {name: value for name, value in vars(tally).items() if name != "kept"}
    return {"address": place.address, "revision": place.revision} | reasons
