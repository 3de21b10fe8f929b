"""COCO as detection-datasets/coco has it: category names and boxes."""

from __future__ import annotations

import pytest

from sparsemm.datasets.records import Entry, read_about
from sparsemm.errors import DataError
from tests.datasets.samples import COCO_FEATURES, coco_rows, download_files, parquet


@pytest.fixture
def run(tmp_path):
    """`run(parquet bytes, **params)`: the records of a folder that holds them."""
    options = {"source": "folder", "path": "coco", "format": "coco", "licence": "CC-BY-4.0", "max_bad": 0.9}
    return lambda data, **given: download_files(
        tmp_path, {"data/val-00000-of-00001-ab12.parquet": data}, **options | given
    )


def test_objects_are_named(run):
    first, _ = run(parquet(coco_rows(2), COCO_FEATURES))
    assert first.entries == (
        Entry("car", (0.0, 1.0, 20.0, 30.0), "object"),
        Entry("person", (5.5, 5.5, 60.0, 39.0), "object"),
    )
    assert first.licence == "CC-BY-4.0" and first.image.size == (60, 40)


def test_categories_without_names_are_refused(run):
    for features in (None, {}, {"objects": {"feature": {"category": {"_type": "Value"}}}}):
        with pytest.raises(DataError, match="does not name the categories"):
            run(parquet(coco_rows(2), features))


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ({"category": [7], "bbox": [[0.0, 0.0, 5.0, 5.0]]}, "list index out of range"),
        ({"category": [-1], "bbox": [[0.0, 0.0, 5.0, 5.0]]}, "has no category"),
        ({"category": [1, 2], "bbox": [[0.0, 0.0, 5.0, 5.0]]}, "zip"),
        ({"category": [1], "bbox": [[0.0, 0.0, 0.0, 5.0]]}, "empty or outside"),
        ({"category": [1], "bbox": [[0.0, 5.0]]}, "not four numbers"),
        ({"category": [None], "bbox": [[0.0, 0.0, 5.0, 5.0]]}, "not lists of category and bbox"),
    ],
)
def test_a_bad_row_is_left_out(run, tmp_path, objects, reason):
    rows = coco_rows(2)
    rows[1]["objects"] = objects | {"area": [1.0]}
    assert len(run(parquet(rows, COCO_FEATURES))) == 1
    (bad,) = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["bad"]
    assert reason in bad and "row 1" in bad
