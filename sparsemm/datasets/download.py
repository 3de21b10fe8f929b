"""The download stage: turns a data set of params.yaml into one parquet file of records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

from sparsemm import fetch
from sparsemm.datasets import coco, ctw, mlt2019, pdf, records_jsonl, synthdog
from sparsemm.datasets.data_errors import data_errors
from sparsemm.datasets.images import is_of_one_colour
from sparsemm.datasets.records import Record, Row, Rows, write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import CorruptFetch, DataError, EmptyRecord, FetchError, ParamsError
from sparsemm.fetch import Place
from sparsemm.files import plain_name, room
from sparsemm.params import Params
from sparsemm.params.datasets import FolderParams, HubParams, PdfParams, S3Params, SyntheticParams
from sparsemm.progress import progress

STYLES = (PageStyle(1, 6, (3, 6)), PageStyle(2, 6, (6, 12)))  # alternately two pages of one and two of two columns

ExternalParams = HubParams | S3Params | FolderParams | PdfParams

FORMATS: dict[str, Callable[[Place, str | None, int], Rows]] = {  # functions (place, split, first row) -> rows
    "records_jsonl": records_jsonl.rows,
    "synthdog": synthdog.rows,
    "coco": coco.rows,
    "mlt2019": mlt2019.rows,
    "ctw": ctw.rows,
}


@dataclass
class Tally:
    """Counts a source's rows."""

    kept: int = 0  # number of rows that became records
    # reasons of rows without text (a page without a text layer, an image without words)
    empty: list[str] = field(default_factory=list)
    # reasons of rows that do not fit the schema, and of files that cannot be read
    bad: list[str] = field(default_factory=list)
    # kept records whose picture has a single colour, as when it was decoded wrongly
    suspicious: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)  # kept records that lack some of the visible text, and why


def synthetic_records(params: SyntheticParams) -> Iterator[Record]:
    """Draws the records of a synthetic data set, in order; the same for the same params.

    Even and odd records have the same mix of styles, so that halves of a score table can be compared.
    """
    for index in range(params.samples):
        style = replace(STYLES[index // 2 % len(STYLES)], type_size=params.type_size)
        yield draw_record(params.split, params.seed, index, style)


def open_place(params: ExternalParams, root: Path, work: Path) -> Place:
    """Opens the files of a data set, at the revision in params.yaml if there is one.

    Raises FetchError if they cannot be listed, or the revision is another.
    """
    if isinstance(params, HubParams):
        place = fetch.open_hub(params.repo, work, params.revision)
    elif isinstance(params, S3Params):
        place = fetch.open_s3(params.location, work, params.revision)
    else:
        place = fetch.open_local(params.path, root, params.revision)
    if not place.files:
        raise FetchError("nothing is there", where=place.address, hint="check the spelling")
    return place


def external_records(params: ExternalParams, place: Place, tally: Tally) -> Iterator[Record]:
    """Yields up to `samples` records of a place; counts the rows in `tally`, and skips bad and empty ones.

    An error in a file or row affects it alone. Only a source that cannot be reached, or a full disk, ends the run at
    once. Raises DataError if the files do not have the format, more than `max_bad` of the rows are bad, or no record is
    left, FetchError if a file cannot be downloaded, and ParamsError if neither params.yaml nor the source names a
    licence.
    """
    licence = params.licence or place.licence
    if licence is None:
        hint = "write `licence` in params.yaml"
        raise ParamsError("the source does not name a licence", where=place.address, hint=hint)
    first, stop = params.rows or (0, None)
    if isinstance(params, PdfParams):  # whose `rows` are documents
        rows, count = pdf.rows(place, first, stop, params.dpi), None
    else:
        rows = FORMATS[params.format](place, params.split and plain_name(params.split), first)
        count = None if stop is None else stop - first
    ids: set[str] = set()
    with closing(rows), data_errors(place.address):
        for row in islice(rows, count):
            try:
                if isinstance(row, DataError):  # a file, or the rest of one
                    raise row
                result = _read_row(row, f"{place.address}@{place.revision}", licence)
                if result.id in ids:
                    raise DataError("two records share this id", where=f"record {result.id!r}")
            except EmptyRecord as error:
                tally.empty.append(str(error))
            except DataError as error:
                tally.bad.append(str(error))
                if _too_many_bad(params, tally, params.samples):  # even if all rows that are still needed were good
                    break
            else:
                ids.add(result.id)
                tally.kept += 1
                tally.partial += result.remarks
                if is_of_one_colour(result.image):
                    tally.suspicious.append(f"record {result.id!r}: the picture has a single colour")
                yield result
                if tally.kept == params.samples:  # before the next row is requested
                    break
    if _too_many_bad(params, tally, tally.kept):
        what = f"{len(tally.bad)} rows are bad and {tally.kept} are good, the first bad one: {tally.bad[0]}"
        raise DataError(what, where=place.address, hint=f"more than max_bad, {params.max_bad:g} of all, allows")
    if not tally.kept:
        reason = f", {len(tally.empty)} have nothing to read" if tally.empty else ""
        if tally.bad:
            reason += f", {len(tally.bad)} are bad: {'; '.join(tally.bad[:3])}"
        raise DataError(f"no row became a record{reason}", where=place.address)


def _read_row(row: Row, source: str, licence: str) -> Record:
    """Reads one row as a valid record with text in Unicode NFC, as models write it.

    Raises DataError if that fails, whatever the format or a library raised, and FetchError if the source cannot be
    reached, or the disk is full.
    """
    with data_errors(row.where):
        result = row.read(source, licence)
        entries = tuple(replace(entry, text=normalize("NFC", entry.text)) for entry in result.entries)
        result = replace(result, entries=entries).validate()
    if not result.entries:
        raise EmptyRecord("nothing to read", where=f"record {result.id!r}")
    return result


def _too_many_bad(params: ExternalParams, tally: Tally, good: int) -> bool:
    return len(tally.bad) > params.max_bad * (good + len(tally.bad))


def run(params: Params, key: str, root: Path = Path(".")) -> None:
    """Writes artifacts/datasets/<key>.parquet, and prints what was left out.

    If it was stopped, the next run downloads only what is missing. A file that arrived damaged is downloaded once more.
    Raises ParamsError if there is no such data set, DataError if the source's files are not as params.yaml says, and
    FetchError if they cannot be downloaded.
    """
    if key not in params.datasets:
        known = ", ".join(params.datasets) or "none yet"
        raise ParamsError(f"no data set {key!r}", where="params.yaml: datasets", hint=f"known: {known}")
    dataset = params.datasets[key]
    path = root / "artifacts" / "datasets" / f"{key}.parquet"
    work = root / "artifacts" / "work" / "download" / key
    if isinstance(dataset, SyntheticParams):
        with room(str(path)):
            records = progress(synthetic_records(dataset), dataset.samples, f"download {key}")
            write_records(work / path.name, records)
        _finish(work, path)
        return
    for attempt in (1, 2):
        place, tally = open_place(dataset, root, work), Tally()
        records = progress(external_records(dataset, place, tally), dataset.samples, f"download {key}")
        try:
            with room(str(path)):
                write_records(work / path.name, records, lambda t=tally, p=place: _about(p, t))  # type: ignore[misc]
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
        ("{} without some of the visible text", tally.partial),
    ):
        if reasons:
            print(f"{key}: {name.format(len(reasons))}, the first: {reasons[0]}")


def _finish(work: Path, path: Path) -> None:
    """Moves the finished file out of its work folder, and removes the folder with the remains of killed processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(work / path.name, path)
    shutil.rmtree(work, ignore_errors=True)


def _about(place: Place, tally: Tally) -> dict[str, Any]:
    reasons = {name: value for name, value in vars(tally).items() if name != "kept"}
    return {"address": place.address, "revision": place.revision} | reasons
