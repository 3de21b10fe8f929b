"""Records survive the disk and refuse what does not fit the schema."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sparsemm.datasets.records import Entry, Record, read_records, write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import DataError


def _record(**changes: object) -> Record:
    fields: dict = dict(
        id="a",
        image=Image.new("RGB", (20, 10)),
        entries=(Entry("hut", (0.0, 0.0, 20.0, 10.0), "word"),),
        source="test",
        licence="none",
    )
    return Record(**(fields | changes))


def test_round_trip(tmp_path: Path) -> None:
    records = [draw_record("train", 0, index, PageStyle()) for index in range(5)]
    path = tmp_path / "pages.parquet"
    assert write_records(path, records) == 5
    read = read_records(path)
    assert [r.entries for r in read] == [r.entries for r in records]
    assert [r.image.tobytes() for r in read] == [r.image.tobytes() for r in records]
    assert len(read_records(path, limit=2)) == 2 and read_records(path, limit=0) == []
    first = path.read_bytes()
    write_records(path, records)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 0, 5),
        (5, 0, 4, 5),
        (-1, 0, 5, 5),
        (0, 0, 21, 5),
        (0, 0, math.nan, 5),
        (0, 0, math.inf, 5),
        (0, 0, 5),
    ],
)
def test_bad_boxes_are_refused(box: tuple) -> None:
    with pytest.raises(DataError, match="record 'a', entry 0"):
        _record(entries=(Entry("x", box, "word"),)).validate()


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"licence": ""},
        {"image": Image.new("L", (20, 10))},
        {"entries": (Entry(" ", (0, 0, 1, 1), "word"),)},
    ],
)
def test_bad_records_are_refused(changes: dict) -> None:
    with pytest.raises(DataError):
        _record(**changes).validate()
    with pytest.raises(DataError, match="kind 'wort' is unknown"):
        _record(entries=(Entry("x", (0, 0, 1, 1), "wort"),)).validate()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "pages.parquet"
    write_records(path, [_record()])
    before = path.read_bytes()
    with pytest.raises(DataError, match="share this id"):
        write_records(path, [_record(), _record()])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["pages.parquet"]


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_records(tmp_path / "none.parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_records(broken)
    data = write_records(broken, [_record()]) and bytearray(broken.read_bytes())
    data[4:20] = b"\xff" * 16  # the first page's header; the table of contents is whole
    broken.write_bytes(data)
    with pytest.raises(DataError, match="damaged.*run the download stage again"):
        read_records(broken)
    pq.write_table(pa.table({"id": ["a"]}), broken)
    with pytest.raises(DataError, match="columns differ"):
        read_records(broken)
    write_records(broken, [_record()])
    table = pq.read_table(broken)
    column = pa.array([b"not an image"], pa.binary())
    pq.write_table(table.set_column(1, table.schema.field("image"), column), broken)
    with pytest.raises(DataError, match="unreadable image"):
        read_records(broken)
