"""JSON lines of boxes: what is read, and what is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from sparsemm.datasets.records import Entry, read_about
from sparsemm.errors import DataError
from tests.datasets.samples import BOMB, download_files, png

GOOD = {"image": "a.png", "entries": [{"text": "hut", "box": [1, 2, 30, 12]}]}


@pytest.fixture
def mine(tmp_path):
    """`mine(*lines, **params)`: the records of a folder whose JSONL file has these lines."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(png())
    (tmp_path / "outside.png").write_bytes(png())

    def run(*lines, **given):
        text = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        options = {"source": "folder", "path": "mine", "format": "records_jsonl", "licence": "CC0", "max_bad": 1.0}
        return download_files(tmp_path, {"records.jsonl": b"\n".join(text)}, **options | given)

    return run


def test_records_with_source_and_licence(mine, tmp_path, capsys):
    named = GOOD | {"id": "second", "entries": [{"text": "Summe 3", "box": [0, 0, 70, 40], "kind": "line"}]}
    first, second = mine(GOOD, b"", named)
    assert (first.id, second.id, first.licence) == ("records-1", "second", "CC0")
    assert first.entries == (Entry("hut", (1.0, 2.0, 30.0, 12.0), "word"),)
    assert second.entries == (Entry("Summe 3", (0.0, 0.0, 60.0, 40.0), "line"),)  # cut at the image's edge
    about = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")
    assert first.source == f"mine@{about['revision']}" and about["bad"] == about["empty"] == []
    assert f"2 records of mine, revision {about['revision']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not an object"),
        (b"[1]", "not an object"),
        (b"\xff\xfe", "not an object"),
        (b"[" * 100_000, "not an object"),
        ({"image": "a.png"}, "entries"),
        (GOOD | {"label": 1}, "optionally id"),
        (GOOD | {"id": 7}, "id is not text"),
        (GOOD | {"image": "none.png"}, "no file 'none.png'"),
        (GOOD | {"image": "../outside.png"}, "no file"),
        (GOOD | {"image": "program.eps"}, "would be run"),
        (GOOD | {"image": "heights.tiff"}, "no known white"),
        (GOOD | {"image": "records.jsonl"}, "image cannot be read"),
        (GOOD | {"image": "cut.png"}, "image cannot be read"),
        (GOOD | {"image": "bomb.png"}, "too large"),
        (GOOD | {"entries": [{"text": "hut"}]}, "not four numbers"),
        (GOOD | {"entries": [{"text": 3, "box": [1, 2, 3, 4]}]}, "entry 0: not an object"),
        (GOOD | {"entries": [{"text": " ", "box": [1, 2, 3, 4]}]}, "text is empty"),
        (GOOD | {"entries": [{"text": "x", "box": [1, 2, 1, 4]}]}, "empty or outside"),
        (GOOD | {"entries": [{"text": "x", "box": [100, 2, 110, 4]}]}, "empty or outside"),
        (GOOD | {"entries": [{"text": "x", "box": ["a", 2, 3, 4]}]}, "not four numbers"),
        (GOOD | {"entries": [{"text": "x", "box": [float("nan"), 2, 3, 4]}]}, "not finite"),
        (GOOD | {"entries": [{"text": "x", "box": [1, 2, 3, 4], "kind": "wort"}]}, "kind 'wort'"),
        (GOOD | {"id": "records-1"}, "share this id"),
    ],
)
def test_a_bad_line_is_left_out_counted_and_listed(mine, tmp_path, capsys, line, reason):
    (tmp_path / "mine" / "cut.png").write_bytes(png()[:-500])
    (tmp_path / "mine" / "bomb.png").write_bytes(BOMB)
    Image.new("RGB", (9, 9)).save(tmp_path / "mine" / "program.eps")
    Image.new("F", (9, 9)).save(tmp_path / "mine" / "heights.tiff")
    assert [record.id for record in mine(GOOD, line)] == ["records-1"]
    (bad,) = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["bad"]
    assert reason in bad and "left out 1 bad, the first: " in capsys.readouterr().out


def test_a_page_without_text_is_counted_apart(mine, tmp_path):
    assert len(mine(GOOD, GOOD | {"entries": []}, max_bad=0.0)) == 1
    about = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")
    assert len(about["empty"]) == 1 and not about["bad"]


def test_too_many_bad_lines_are_an_error_and_leave_nothing(mine, tmp_path):
    with pytest.raises(DataError, match="2 rows are bad and 1 are good.*max_bad, 0.5"):
        mine(GOOD, b"{", b"{", max_bad=0.5)
    assert not (tmp_path / "artifacts" / "datasets").exists()
    assert len(mine(GOOD, b"{", max_bad=0.5)) == 1
    with pytest.raises(DataError, match="no row became a record"):
        mine(b"{")


def test_splits_are_files_and_rows_are_lines(mine, tmp_path):
    (tmp_path / "mine" / "val.jsonl").write_text("".join(json.dumps(GOOD | {"id": f"v{i}"}) + "\n" for i in range(9)))
    assert [r.id for r in mine(GOOD, split="val", rows=[2, 5])] == ["v2", "v3", "v4"]
    assert [r.id for r in mine(GOOD, split="val", samples=2)] == ["v0", "v1"]
    assert len(mine(GOOD)) == 10
    with pytest.raises(DataError, match="no test.jsonl.*val.jsonl"):
        mine(GOOD, split="test")


def test_what_is_transparent_is_white(mine, tmp_path):
    Image.new("RGBA", (60, 40), (0, 0, 0, 0)).save(tmp_path / "mine" / "a.png")
    (record,) = mine(GOOD)
    assert record.image.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_grey_of_sixteen_bits_keeps_its_shades(mine, tmp_path, suffix):
    shades = np.tile(np.linspace(0, 65535, 60).astype(np.uint16), (40, 1))
    Image.fromarray(shades).save(tmp_path / "mine" / f"scan.{suffix}")
    (record,) = mine(GOOD | {"image": f"scan.{suffix}"})
    assert (np.asarray(record.image)[:, :, 0] == shades // 256).all()


def test_images_may_lie_beside_the_folder_of_the_file(mine, tmp_path):
    (tmp_path / "mine" / "labels").mkdir()
    beside = GOOD | {"image": "../a.png"}
    (tmp_path / "mine" / "labels" / "val.jsonl").write_text(json.dumps(beside), encoding="utf-8")
    assert [record.id for record in mine(beside, split="val")] == ["val-1"]


def test_a_letter_and_its_accent_are_one_character(mine):
    (record,) = mine(GOOD | {"entries": [{"text": "cafe\u0301", "box": [1, 2, 30, 12]}]})
    assert record.entries[0].text == "caf\u00e9"


def test_what_is_too_large_to_be_one_description_or_one_image_is_not_read(mine, monkeypatch):
    size = len(png())
    monkeypatch.setattr("sparsemm.datasets.records_jsonl.LARGEST", size - 1)
    with pytest.raises(DataError, match=f"a.png is larger than {size - 1} bytes"):
        mine(GOOD, max_bad=0.0)
    monkeypatch.setattr("sparsemm.datasets.archives.LARGEST", 100)
    with pytest.raises(DataError, match="records.jsonl: line 2 is larger than 100 bytes"):
        mine(GOOD, b" " * 101)


def test_what_only_json_can_say_sinks_nothing_else(mine, tmp_path):
    def entry(text, box):
        return GOOD | {"entries": [{"text": text, "box": box}]}

    bad = [entry("hut", [1, 2, 10**400, 12]), entry("\ud800", [1, 2, 30, 12]), GOOD | {"id": "\ud800"}]
    assert len(mine(GOOD, *bad, GOOD)) == 2
    left_out = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["bad"]
    assert ["not four numbers" in left_out[0], "half a" in left_out[1], "half a" in left_out[2]] == [True] * 3


def test_reasons_repeat_byte_for_byte(mine, tmp_path):
    path = tmp_path / "artifacts" / "datasets" / "mine.parquet"
    (tmp_path / "mine" / "b.png").write_bytes(b"no image")
    mine(GOOD, GOOD | {"image": "b.png"})
    before = path.read_bytes()
    mine(GOOD, GOOD | {"image": "b.png"})
    assert path.read_bytes() == before and "0x" not in read_about(path)["bad"][0]
