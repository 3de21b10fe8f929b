"""InternVL's geometry against its processor and its model, at many sizes."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from transformers import AutoConfig, GotOcr2ImageProcessor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from sparsemm.errors import LayoutError
from sparsemm.layouts import get_layout
from tests.families import made
from tests.layouts.geometry import check_exact_boxes, check_order, check_views, draw_batches, inputs_of

LAYOUT = get_layout("internvl")


def exact_edges(length, tiles):
    """Fractions: two cells a tile."""
    return [Fraction(length * cell, 2 * tiles) for cell in range(2 * tiles + 1)]


def test_every_visual_token_is_a_cell_and_boxes_take_what_they_intersect():
    model, processor = made("internvl")
    rng = random.Random(1)
    for batch in draw_batches(90, 8, 260):
        for tokens in check_views(model, LAYOUT, inputs_of(processor, batch), batch):
            columns, rows = get_optimal_tiled_canvas(tokens.size[::-1], (28, 28), 1, 6)
            assert (tokens.thumbnail is None) == (rows * columns == 1)
            x_edges, y_edges = exact_edges(tokens.size[0], columns), exact_edges(tokens.size[1], rows)
            check_exact_boxes(tokens, x_edges, y_edges, rng)


def test_the_published_geometry_at_many_sizes():
    """448 px tiles of 16 x 16 tokens, at most 12; the processor's own rule, without the pixels."""
    vision = {"model_type": "internvl_vision", "image_size": 448, "patch_size": 14}
    config = AutoConfig.for_model("internvl", vision_config=vision, image_token_id=9)
    rng = random.Random(2)
    for least, most in ((1, 12), (1, 6), (4, 12), (1, 1)):
        processor = GotOcr2ImageProcessor(
            size={"height": 448, "width": 448}, crop_to_patches=True, min_patches=least, max_patches=most
        )
        for _ in range(150):
            width, height = (rng.randint(1, rng.choice((60, 500, 3000))) for _ in range(2))
            views = processor.get_number_of_image_patches(height, width)
            inputs = {"input_ids": torch.tensor([[1] * 3 + [9] * (256 * views) + [1]])}
            (tokens,) = LAYOUT.image_tokens(config, inputs, 0, [(width, height)])
            columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), least, most)
            assert tokens.grid == (16 * rows, 16 * columns), (width, height, least, most)


def test_pixels_that_change_lie_under_the_tokens_of_their_box():
    model, processor = made("internvl")
    check_order(model, processor, LAYOUT, most=120, cell=16)
    check_order(model, processor, LAYOUT, most=120, cell=16, per_row=2)


def test_other_images_than_the_prompts_are_refused():
    model, processor = made("internvl")
    inputs = inputs_of(processor, [[(60, 30), (30, 60)]])
    for wrong in ([], [(60, 30)], [(60, 30)] * 3):
        with pytest.raises(LayoutError, match="image sizes for 2 images"):
            LAYOUT.image_tokens(model.config, inputs, 0, wrong)
    with pytest.raises(LayoutError, match="no row"):
        LAYOUT.image_tokens(model.config, inputs, 1, [(60, 30)])
    for left in (1, 8):
        cut = {"input_ids": torch.tensor([[5] + [model.config.image_token_id] * left + [5]])}
        with pytest.raises(LayoutError, match="are no image"):
            LAYOUT.image_tokens(model.config, cut, 0, [(60, 30)])
