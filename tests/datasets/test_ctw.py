"""Chinese Text in the Wild as published: characters with quads, in lines."""

from __future__ import annotations

import io
import json
import tarfile
from functools import partial

import pytest

from sparsemm.datasets.records import Entry, read_about
from sparsemm.errors import DataError
from tests.datasets.samples import download_files, png


def character(text, x, y, size=8, lean=1):
    """One character as published, its quad leaning to the right."""
    polygon = [[x + lean, y], [x + size + lean, y], [x + size, y + size], [x, y + size]]
    box = [x, y, size + lean, size]
    return {"text": text, "polygon": polygon, "adjusted_bbox": box, "is_chinese": True, "attributes": []}


def photo(number, lines):
    """A line of train.jsonl."""
    value = {"image_id": f"{number:07d}", "file_name": f"{number:07d}.jpg", "width": 60, "height": 40, "ignore": []}
    return json.dumps(value | {"annotations": lines}, ensure_ascii=False).encode() + b"\n"


LINES = [
    [character("出", 4, 20), character("口", 14, 20)],
    [character("北", 2, 2), character("京", 12, 3), character("A", 22, 2)],
]


def tar(files, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def run(tmp_path):
    """`run(files, **params)`: the records of a folder with these files."""
    options = {"path": "ctw", "format": "ctw", "licence": "CC-BY-NC-SA-4.0", "max_bad": 0.9}
    return partial(download_files, tmp_path, source="folder", **options)


def test_a_line_of_characters_is_an_entry(run):
    (record,) = run({"train.jsonl": photo(7, LINES), "images/0000007.jpg": png()})
    assert record.id == "ctw-0000007"
    assert record.entries == (
        Entry("北京A", (2.0, 2.0, 31.0, 11.0), "line"),
        Entry("出口", (4.0, 20.0, 23.0, 28.0), "line"),
    )


def test_the_published_archives_are_read_as_they_are(run):
    files = {
        "ctw-annotations.tar.gz": tar(
            {
                "info.json": b"{}",
                "train.jsonl": b"".join(photo(i, LINES) for i in range(6)),
                "val.jsonl": photo(9, LINES[:1]),
            },
            "w:gz",
        ),
        "images-trainval/ctw-trainval-01-of-26.tar": tar({f"{i:07d}.jpg": png(seed=i) for i in range(3)}),
        "images-trainval/ctw-trainval-02-of-26.tar": tar({f"{i:07d}.jpg": png(seed=i) for i in (9, 4, 3, 5)}),
    }
    records = run(files, rows=[1, 5])
    assert [r.id for r in records] == [f"ctw-{i:07d}" for i in range(1, 5)]
    assert [r.entries[0].text for r in run(files, split="val")] == ["出口"]
    with pytest.raises(DataError, match="no test_cls.jsonl"):
        run(files, split="test_cls")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{\n", "not an image with annotations"),
        (b'{"image_id": "1", "file_name": "0000001.jpg"}\n', "annotations"),
        (photo(1, [[{"text": "出"}]]), "polygon"),
        (photo(1, [[character(3, 2, 2)]]), "not an image with annotations"),
        (photo(1, [[]]), "are not points"),
        (photo(1, [[{"text": "出", "polygon": [[1, 2], [float("nan"), 2], [9, 9], [1, 9]]}]]), "are not points"),
        (photo(1, [[character("出", 100, 2)]]), "empty or outside"),
        (photo(1, [[{"text": "出", "polygon": [[1, 2, 3]]}]]), "are not points"),
        (photo(2, LINES), "no image 0000002.jpg"),
    ],
)
def test_a_bad_line_is_left_out(run, tmp_path, line, reason):
    files = {"train.jsonl": photo(0, LINES) + line, "0000000.jpg": png(), "0000001.jpg": png()}
    assert [r.id for r in run(files)] == ["ctw-0000000"]
    (bad,) = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["bad"]
    assert reason in bad and "train.jsonl, line 2" in bad
