"""The same bad inputs for every format: each is left out, counted and listed, and the good rows around it are kept."""

from __future__ import annotations

import json
import re

import pytest

from sparsemm.datasets.records import read_about
from sparsemm.errors import DataError
from tests.datasets.samples import BOMB, COCO_FEATURES, MINE, NAMES, blank, download_files, parquet, png

GOOD = 20  # rows beside the bad one
BOX = (2.0, 3.0, 30.0, 12.0)


def jsonl(rows):
    files = {f"{i}.png": image for i, (image, _, _) in enumerate(rows)}
    lines = [{"image": f"{i}.png", "entries": [{"text": text, "box": box}]} for i, (_, text, box) in enumerate(rows)]
    return files | {"all.jsonl": "\n".join(map(json.dumps, lines)).encode()}


def synthdog(rows):
    table = [
        {"image": {"bytes": image, "path": None}, "2_coord": [{"chunk": text, "coord": [box[:2], box[2:]]}]}
        for image, text, box in rows
    ]
    return {"train-00000-of-00001.parquet": parquet(table)}


def coco(rows):
    table = [
        {
            "image": {"bytes": image, "path": None},
            "image_id": i,
            "objects": {"category": [NAMES.index(text) if text in NAMES else None], "bbox": [list(box)]},
        }
        for i, (image, text, box) in enumerate(rows)
    ]
    return {"val-00000-of-00001.parquet": parquet(table, COCO_FEATURES)}


def corners(box):
    x0, y0, x1, y1 = box
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def mlt2019(rows):
    files = {}
    for i, (image, text, box) in enumerate(rows):
        quad = ",".join(str(value) for point in corners(box) for value in point)
        files |= {f"images/tr_img_{i:05d}.png": image, f"gt/tr_img_{i:05d}.txt": f"{quad},Latin,{text}\n".encode()}
    return files


def ctw(rows):
    files, lines = {}, []
    for i, (image, text, box) in enumerate(rows):
        name = f"{i:07d}.png"
        lines.append(
            {"file_name": name, "image_id": f"{i:07d}", "annotations": [[{"text": text, "polygon": corners(box)}]]}
        )
        files[name] = image
    return files | {"train.jsonl": "\n".join(map(json.dumps, lines)).encode()}


FORMATS = {"records_jsonl": jsonl, "synthdog": synthdog, "coco": coco, "mlt2019": mlt2019, "ctw": ctw}
NAN = float("nan")
BAD = {
    "truncated image": ((png()[:-300], "car", BOX), "cannot be read"),
    "no image": ((b"GIF89a", "car", BOX), "cannot be read"),
    "huge image": ((BOMB, "car", BOX), "too large"),
    "zero-area box": ((png(), "car", (2.0, 3.0, 2.0, 12.0)), "empty or outside"),
    "NaN": ((png(), "car", (2.0, NAN, 30.0, 12.0)), "not finite|not upright|not points|empty or outside"),
    "outside": ((png(), "car", (100.0, 3.0, 130.0, 12.0)), "empty or outside"),
    "empty text": ((png(), "", BOX), "text is empty|category|not a line|empty"),
}


@pytest.fixture
def run(tmp_path):
    """`run(format, rows)`: the records, and what was left out."""

    def run(name, rows):
        options = {"source": "folder", "path": "mine", "format": name, "licence": "CC0", "max_bad": 0.05}
        records = download_files(tmp_path, FORMATS[name](rows), **options)
        about = read_about(tmp_path / MINE)
        return records, about["bad"] + about["empty"]

    return run


def good(count=GOOD):
    return [(png(seed=i), NAMES[i % 3], BOX) for i in range(count)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", BAD)
def test_one_bad_row_is_left_out_counted_and_listed(run, name, kind, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)  # as a library may have it
    row, reason = BAD[kind]
    rows = good()
    rows.insert(7, row)
    records, left_out = run(name, rows)
    assert len(records) == GOOD and len(left_out) == 1
    assert re.search(reason, left_out[0]), left_out


@pytest.mark.parametrize("name", FORMATS)
def test_more_of_them_than_max_bad_are_an_error(run, tmp_path, name):
    with pytest.raises(DataError, match="max_bad, 0.05"):
        run(name, good() + [BAD["truncated image"][0]] * 2)
    assert not (tmp_path / "artifacts" / "datasets").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_odd_but_sound_images_are_kept(run, name):
    """One pixel, 20,000 pixels long: which models take them is for the align stage to see."""
    rows = [(blank(1, 1), "car", (0.0, 0.0, 1.0, 1.0)), (blank(20_000, 4), "person", (5.0, 0.0, 19_000.0, 4.0))]
    records, left_out = run(name, rows)
    assert [record.image.size for record in records] == [(1, 1), (20_000, 4)] and not left_out


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "coco"])
def test_scripts_may_be_mixed(run, name):
    text = "Total 合計 المجموع итого 12"
    (record,), left_out = run(name, [(png(), text, BOX)])
    assert record.entries[0].text == text and not left_out
