"""The efficiency figure follows its numbers; the paper's points appear only where they compare."""

from __future__ import annotations

import csv
import io
import platform
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sparsemm.errors import DataError
from sparsemm.report import efficiency

GPU = {"device": "a GPU"}


def rows(crafted, ms=2.0):
    made = []
    for length in (2048, 32768):
        made += [
            crafted.timing("transformers", length, 2 * ms),
            crafted.timing("sparsemm", length, ms) | {"budget": "256"},
        ]
    return [row | {"model": "vicuna-7b"} for row in made]


def test_the_picture_is_not_blank_and_follows_its_numbers(crafted):
    one, again, other = (efficiency.figure("m", rows(crafted, ms)) for ms in (2.0, 2.0, 3.0))
    assert one == again != other
    picture = Image.open(io.BytesIO(one))
    assert np.asarray(picture.convert("L")).std() > 5
    assert 10 / 72 * 150 * 360 / picture.width > 8  # text of 10 points, on a phone


def test_the_roofline_is_drawn(crafted):
    moved = [row | {"roofline_ms": "0.1"} for row in rows(crafted)]
    assert efficiency.figure("m", rows(crafted)) != efficiency.figure("m", moved)


def test_the_papers_points_need_its_shape_length_budget_and_a_gpu(crafted):
    points = efficiency.paper_points("vicuna-7b", GPU, rows(crafted))
    assert {(p["quantity"], p["method"]) for p in points} == {
        ("decode_speedup", "sparsemm"),
        ("peak_gb", "sparsemm"),
        ("peak_gb", "transformers"),
    }
    assert efficiency.figure("m", rows(crafted), points) != efficiency.figure("m", rows(crafted))
    assert efficiency.paper_points("vicuna-7b", {"device": platform.machine()}, rows(crafted)) == []
    assert efficiency.paper_points("mistral-7b", GPU, rows(crafted)) == []
    others = [row | {"budget": "16"} if row["budget"] else row for row in rows(crafted)]
    assert {p["method"] for p in efficiency.paper_points("vicuna-7b", GPU, others)} == {"transformers"}


def test_shapes_are_shown_once_timed_and_damage_is_refused(crafted, tmp_path):
    params, images = SimpleNamespace(profile=SimpleNamespace(shapes=("vicuna-7b",))), {}
    assert efficiency.shapes(params, tmp_path, images) == "" and images == {}
    path = tmp_path / "artifacts/profile/shapes/vicuna-7b.csv"
    path.parent.mkdir(parents=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows(crafted)[0]))
        writer.writeheader()
        writer.writerows(rows(crafted))
    found = crafted.checked(efficiency.shapes(params, tmp_path, images))
    assert "vicuna-7b with random weights" in found.text and set(images) == {"efficiency-vicuna-7b"}
    path.write_text("model\nvicuna-7b\n")
    with pytest.raises(DataError, match="missing"):
        efficiency.shapes(params, tmp_path, images)
