"""Qwen3.5's geometry against its processor and its model, at many sizes."""

from __future__ import annotations

import pytest

from sparsemm.layouts import get_layout
from tests.families import made
from tests.layouts.geometry import check_batches, check_order, check_published_grids, draw_batches

LAYOUT = get_layout("qwen3_5")


@pytest.mark.parametrize("name", ["qwen3.5", "qwen3.5-moe"])
def test_counts_tiling_and_boxes_in_batches_of_several_images(name):
    check_batches(*made(name), LAYOUT, draw_batches(240, 12, 260))


def test_grids_of_the_published_geometry_are_accepted():
    limits = {"shortest_edge": 65536, "longest_edge": 16777216}
    check_published_grids(made("qwen3.5")[1].image_processor, patch_size=16, limits=limits)


@pytest.mark.parametrize("per_row", [1, 2])
@pytest.mark.parametrize("name", ["qwen3.5", "qwen3.5-moe"])
def test_pixels_that_change_lie_under_the_tokens_of_their_box(name, per_row):
    """Read off the features that take the tokens' places."""
    check_order(*made(name), LAYOUT, most=120, cell=16, per_row=per_row)
