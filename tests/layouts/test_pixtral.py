"""Pixtral's and Mistral 3's geometry against their processor and models, at many sizes."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from transformers.models.pixtral.image_processing_pixtral import get_resize_output_image_size

from sparsemm.errors import LayoutError
from sparsemm.layouts import family_of, get_layout
from sparsemm.layouts.pixtral import fits
from tests.families import made
from tests.layouts.geometry import check_exact_boxes, check_order, check_views, draw_batches, inputs_of

LAYOUT = get_layout("pixtral")


def cells(size, longest, pixels):
    """(rows, columns) by the processor's own resizing."""
    image = np.zeros((size[1], size[0], 3), dtype=bool)
    resized = get_resize_output_image_size(image, (longest, longest), (pixels, pixels), "channels_last")
    return resized[0] // pixels, resized[1] // pixels


@pytest.mark.parametrize(("family", "pixels"), [("pixtral", 7), ("mistral3", 14)])
def test_every_visual_token_is_a_cell_and_boxes_take_what_they_intersect(family, pixels):
    model, processor = made(family)
    rng = random.Random(1)
    for batch in draw_batches(70, 8, 230):
        for tokens in check_views(model, LAYOUT, inputs_of(processor, batch), batch):
            rows, columns = cells(tokens.size, 112, pixels)
            x_edges = [Fraction(tokens.size[0] * i, columns) for i in range(columns + 1)]
            y_edges = [Fraction(tokens.size[1] * i, rows) for i in range(rows + 1)]
            check_exact_boxes(tokens, x_edges, y_edges, rng)


@pytest.mark.parametrize("family", ["pixtral", "mistral3"])
def test_pixels_that_change_lie_under_the_tokens_of_their_box(family):
    model, processor = made(family)
    check_order(model, processor, LAYOUT, most=160, cell=16)
    check_order(model, processor, LAYOUT, most=160, cell=16, per_row=2)


def test_every_resize_fits_and_other_shapes_do_not():
    rng = random.Random(4)
    for _ in range(2000):
        width = rng.randint(1, rng.choice((40, 400, 6000)))
        height = rng.randint(max(1, width // 60), min(width * 60, 6000))
        for longest, pixels in ((1024, 16), (1540, 28), (112, 7)):
            rows, columns = cells((width, height), longest, pixels)
            assert not rows * columns or fits(width, height, rows, columns, pixels), (width, height, rows, columns)
    assert not fits(160, 60, 10, 4, 16) and not fits(60, 160, 4, 10, 16) and not fits(100, 100, 4, 8, 16)
    assert not fits(100, 100, 8, 8, 16)  # an image is never made larger than its last cells


def test_images_that_do_not_fit_the_prompt_are_refused():
    model, processor = made("mistral3")
    inputs = inputs_of(processor, [[(100, 80)], []])
    for row, wrong in ((0, []), (0, [(100, 80)] * 2), (1, [(100, 80)])):
        with pytest.raises(LayoutError):
            LAYOUT.image_tokens(model.config, inputs, row, wrong)
    assert LAYOUT.image_tokens(model.config, inputs, 1, []) == []
    with pytest.raises(LayoutError, match="80x100 image does not make a grid of 6 x 8"):
        LAYOUT.image_tokens(model.config, inputs, 0, [(80, 100)])
    with pytest.raises(LayoutError, match="no row"):
        LAYOUT.image_tokens(model.config, inputs, 2, [(100, 80)])


def test_a_llava_with_another_vision_tower_is_refused():
    """LLaVA 1.5 cuts a square out of the image; its geometry is another."""
    assert family_of({"model_type": "llava", "vision_config": {"model_type": "pixtral"}}) == "pixtral"
    for tower in ({"vision_config": {"model_type": "clip_vision_model"}}, {"vision_config": None}, {}):
        with pytest.raises(LayoutError, match=r"'llava' is not supported.*llava \(vision tower pixtral\)"):
            family_of({"model_type": "llava", **tower})
