"""Boxes on tokens, and the registry of families."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemm import layouts
from sparsemm.errors import LayoutError
from sparsemm.layouts import FAMILIES, ImageTokens, box_positions, family_of, get_layout
from sparsemm.layouts.tokens import even_edges, first_image, image_positions, tile


def tokens(columns, rows, width, height):
    rectangles = tile(np.linspace(0, height, rows + 1), np.linspace(0, width, columns + 1))
    return ImageTokens(np.arange(rows * columns) + 7, rectangles, (rows, columns), (width, height))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 300), st.integers(1, 300), st.data())
def test_a_box_covers_the_rectangles_it_intersects(columns, rows, width, height, data):
    image = tokens(columns, rows, width, height)
    x = sorted(data.draw(st.tuples(st.floats(0, width), st.floats(0, width)).filter(lambda p: p[0] != p[1])))
    y = sorted(data.draw(st.tuples(st.floats(0, height), st.floats(0, height)).filter(lambda p: p[0] != p[1])))
    want = [
        int(position)
        for position, (x0, y0, x1, y1) in zip(image.positions, image.rectangles, strict=True)
        if max(x0, x[0]) < min(x1, x[1]) and max(y0, y[0]) < min(y1, y[1])
    ]
    got = box_positions(image, (x[0], y[0], x[1], y[1]))
    assert got.tolist() == want and len(want) >= 1


def test_a_box_on_a_border_takes_one_side_only():
    image = tokens(4, 2, 40, 20)
    assert box_positions(image, (10.0, 0.0, 20.0, 10.0)).tolist() == [8]
    assert box_positions(image, (0.0, 0.0, 40.0, 20.0)).tolist() == list(range(7, 15))
    assert box_positions(image, (9.999, 0.0, 20.0, 10.0)).tolist() == [7, 8]


@given(st.integers(1, 5000), st.integers(1, 200))
def test_even_edges_are_the_nearest_floats_to_the_exact_ones(length, count):
    assert even_edges(length, count).tolist() == [float(Fraction(length * i, count)) for i in range(count + 1)]


def test_a_box_that_ends_on_an_edge_does_not_touch_the_next_token():
    """30 px in 22 columns: column 11 begins at 15, which np.linspace misses."""
    image = ImageTokens(np.arange(22), tile(even_edges(10, 1), even_edges(30, 22)), (1, 22), (30, 10))
    assert box_positions(image, (0, 0, 15, 10)).tolist() == list(range(11))
    assert box_positions(image, (15, 0, 30, 10)).tolist() == list(range(11, 22))


def test_a_rows_images_are_found_in_the_flat_list_of_the_batch():
    inputs = {"input_ids": torch.tensor([[9, 9, 9, 1], [1, 1, 1, 1], [1, 9, 1, 9]])}
    assert [first_image(inputs, row, 9, [1, 2, 2]) for row in range(3)] == [0, 2, 2]
    assert image_positions(inputs, 2, 9).tolist() == [1, 3]
    for counts in ([2, 2, 1], [1, 1], []):
        with pytest.raises(LayoutError, match="row 0"):
            first_image(inputs, 1, 9, counts)
    for row in (-1, 3):
        with pytest.raises(LayoutError, match="no row"):
            image_positions(inputs, row, 9)


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (9, 5, 5, 9), (-1, 0, 5, 5), (0, 0, 41, 5), (0, 0, 5, 20.5), (0, 0, float("nan"), 5)]
)
def test_empty_boxes_and_boxes_outside_are_refused(box):
    with pytest.raises(LayoutError, match="box"):
        box_positions(tokens(4, 2, 40, 20), box)


def test_families_are_found_by_model_type_and_others_refused():
    assert family_of({"model_type": "llava_next"}) == "llava_next" == get_layout("llava_next").family
    assert family_of({"model_type": "qwen2_vl"}) == "qwen2_vl"
    for config in ({"model_type": "bert"}, {}):
        with pytest.raises(LayoutError, match="supported: llava_next"):
            family_of(config)
    with pytest.raises(LayoutError, match="supported"):
        get_layout("bert")


def test_every_file_of_geometry_is_registered_and_serves_model_types_of_its_own():
    folder = Path(layouts.__file__).parent
    written = {path.stem for path in folder.glob("*.py") if "MODEL_TYPES = " in path.read_text(encoding="utf-8")}
    assert written == set(FAMILIES) and len(FAMILIES) == len(written)
    types = {name: get_layout(family) for family in FAMILIES for name in get_layout(family).model_types}
    assert len(types) == sum(len(get_layout(family).model_types) for family in FAMILIES)
    for name, layout in types.items():
        towers = [{"vision_config": {"model_type": tower}} for tower in layout.vision_types] or [{}]
        assert [family_of({"model_type": name, **tower}) for tower in towers] == [layout.family] * len(towers)
