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
    one, again, other = (efficiency.latency("m", rows(crafted, ms)) for ms in (2.0, 2.0, 3.0))
    assert one == again != other
    picture = Image.open(io.BytesIO(one))
    assert np.asarray(picture.convert("L")).std() > 5
    assert 10 / 72 * 150 * 360 / picture.width > 8  # text of 10 points, on a phone


def test_the_roofline_is_drawn(crafted):
    moved = [row | {"roofline_ms": "0.1"} for row in rows(crafted)]
    assert efficiency.latency("m", rows(crafted)) != efficiency.latency("m", moved)


def timed(rows, name="vicuna-7b", machine=GPU):
    return efficiency.Timed(name, rows, machine)


def test_the_papers_points_need_its_shape_length_budget_and_a_gpu(crafted):
    points = efficiency.stars(timed(rows(crafted)))
    assert {(point.time, point.method, point.length) for point in points} == {
        (True, "sparsemm", 32768),
        (False, "sparsemm", 32768),
        (False, "transformers", 32768),
    }
    assert efficiency.latency("m", rows(crafted), points) != efficiency.latency("m", rows(crafted))
    assert efficiency.stars(timed(rows(crafted), machine={"device": platform.machine()})) == []
    assert efficiency.stars(timed(rows(crafted), "mistral-7b")) == []
    others = [row | {"budget": "16"} if row["budget"] else row for row in rows(crafted)]
    assert {point.method for point in efficiency.stars(timed(others))} == {"transformers"}


def test_a_speed_up_becomes_the_full_caches_time_divided_by_it(crafted):
    (at,) = [point.value for point in efficiency.stars(timed(rows(crafted, ms=2.0))) if point.time]
    with open(efficiency.PAPER, newline="", encoding="utf-8") as handle:
        (speedup,) = [
            float(row["value"])
            for row in csv.DictReader(handle)
            if (row["shape"], row["quantity"]) == ("vicuna-7b", "decode_speedup")
        ]
    assert at == pytest.approx(4.0 / speedup)
    unpaired = [row for row in rows(crafted) if row["method"] != "transformers"]
    assert not any(point.time for point in efficiency.stars(timed(unpaired)))  # nothing to divide


def test_shapes_are_read_once_timed_and_damage_is_refused(crafted, tmp_path):
    params = SimpleNamespace(profile=SimpleNamespace(shapes=("vicuna-7b", "mistral-7b")))
    assert efficiency.read_shapes(params, tmp_path) == []
    path = tmp_path / "artifacts/profile/shapes/vicuna-7b.csv"
    path.parent.mkdir(parents=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows(crafted)[0]))
        writer.writeheader()
        writer.writerows(rows(crafted))
    assert efficiency.read_shapes(params, tmp_path) == [timed(rows(crafted), machine={})]
    path.write_text("model\nvicuna-7b\n")
    with pytest.raises(DataError, match="missing"):
        efficiency.read_shapes(params, tmp_path)
