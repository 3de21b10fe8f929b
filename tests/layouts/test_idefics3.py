"""Idefics3's and SmolVLM's geometry against their processors and models, at many sizes."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, Idefics3ImageProcessor
from transformers.models.idefics3.image_processing_idefics3 import get_resize_output_image_size
from transformers.utils import is_num2words_available

from sparsemm.errors import LayoutError
from sparsemm.layouts import get_layout
from sparsemm.layouts.idefics3 import fits
from tests.families import made
from tests.layouts.geometry import check_exact_boxes, check_order, check_views, draw_batches, inputs_of

LAYOUT = get_layout("idefics3")


class Shapes(Idefics3ImageProcessor):
    """The image processor without the pixels."""

    def resize(self, image, size, resample=None, **options):
        return torch.empty(1, size.height, size.width, device="meta")


WITHOUT = pytest.mark.skipif(not is_num2words_available(), reason="SmolVLM's processor needs num2words")
FAMILIES = [("idefics3", 30, 7, 2), pytest.param("smolvlm", 48, 8, 3, marks=WITHOUT)]


def exact_edges(length, tiles, pixels, cell, side):
    """Fractions: cells of `cell` pixels begin anew in every tile; what is left of it belongs to its last cell."""
    inner = [Fraction((t * pixels + c * cell) * length, tiles * pixels) for t in range(tiles) for c in range(side)]
    return [*inner, Fraction(length)]


def splits(processor, size):
    """(rows, columns) that the processor's own image processor makes of an image."""
    made = processor.image_processor([[Image.new("RGB", size)]], return_row_col_info=True)
    return made["rows"][0][0], made["cols"][0][0]


@pytest.mark.parametrize(("family", "pixels", "patch", "side"), FAMILIES)
def test_every_visual_token_is_a_cell_and_boxes_take_what_they_intersect(family, pixels, patch, side):
    model, processor = made(family)
    rng = random.Random(1)
    for batch in draw_batches(50, 10, 200):
        for tokens in check_views(model, LAYOUT, inputs_of(processor, batch), batch):
            rows, columns = splits(processor, tokens.size)
            edges = [
                exact_edges(n, t, pixels, 2 * patch, side) for n, t in zip(tokens.size, (columns, rows), strict=True)
            ]
            check_exact_boxes(tokens, *edges, rng)


@pytest.mark.parametrize(("family", "pixels", "patch", "side"), FAMILIES)
def test_images_that_are_not_split(family, pixels, patch, side, monkeypatch):
    """Two in a prompt, one behind the other, are two whole views; so they are where splitting is off."""
    model, processor = made(family)
    monkeypatch.setattr(processor.image_processor, "do_image_splitting", False)
    rng, batch = random.Random(1), [[(60, 30), (30, 70)], [], [(200, 10)]]
    for tokens in check_views(model, LAYOUT, inputs_of(processor, batch), batch):
        assert tokens.thumbnail is None
        check_exact_boxes(tokens, *(exact_edges(n, 1, pixels, 2 * patch, side) for n in tokens.size), rng)


@pytest.mark.parametrize(("family", "pixels", "patch", "side"), FAMILIES)
def test_pixels_that_change_lie_under_the_tokens_of_their_box(family, pixels, patch, side):
    model, processor = made(family)
    check_order(model, processor, LAYOUT, most=140, cell=16)
    check_order(model, processor, LAYOUT, most=140, cell=16, per_row=2)


@pytest.mark.parametrize(("longest", "pixels"), [(1456, 364), (2048, 512), (1536, 384), (1500, 384), (600, 512)])
def test_the_processors_splits_fit_and_others_do_not(longest, pixels):
    processor, rng = Shapes(), random.Random(4)
    for _ in range(300):
        width, height = rng.randint(20, 2000), rng.randint(20, 2000)
        image = torch.empty(1, height, width, device="meta")
        first = torch.empty(1, *get_resize_output_image_size(image, longest), device="meta")
        resized = processor.resize_for_vision_encoder(first, pixels).shape[-2:]
        rows, columns = (length // pixels for length in resized)
        assert fits((width, height), rows, columns, pixels), (width, height, rows, columns)
        assert not fits((width, height), rows + 2, columns, pixels) or rows + 2 >= columns
        assert rows == columns or not fits((height, width), rows, columns, pixels), (width, height, rows, columns)


def test_the_published_geometry():
    """SmolVLM: 512 px tiles of 8 x 8 tokens; a token that stands in two lines of a marker is no image token."""
    vision = {"model_type": "smolvlm_vision", "image_size": 512, "patch_size": 16}
    config = AutoConfig.for_model("smolvlm", vision_config=vision, image_token_id=9, scale_factor=4)
    view = [9] * 64
    row = [[5, 60 + i, *view] for i in range(4)]
    ids = [1, *sum(row, []), 3, *sum(row, []), 3, *sum(row, []), 33, 5, 50, *view, 5, 1]
    (tokens,) = LAYOUT.image_tokens(config, {"input_ids": torch.tensor([ids])}, 0, [(640, 480)])
    assert tokens.grid == (24, 32) and tokens.rectangles[33].tolist() == [20, 20, 40, 40]
    assert np.diff(tokens.positions[:9]).tolist() == [1] * 7 + [59]  # on to the tile on the right


def test_other_images_than_the_prompts_are_refused():
    model, processor = made("idefics3")
    inputs = inputs_of(processor, [[(60, 20), (30, 60)]])
    for wrong in ([], [(60, 20)], [(60, 30)] * 3):
        with pytest.raises(LayoutError, match="image sizes for 2 images"):
            LAYOUT.image_tokens(model.config, inputs, 0, wrong)
    with pytest.raises(LayoutError, match="60x20 image does not make 4 x 2 tiles"):
        LAYOUT.image_tokens(model.config, inputs, 0, [(60, 20), (60, 20)])
    with pytest.raises(LayoutError, match="no row"):
        LAYOUT.image_tokens(model.config, inputs, 1, [(60, 20)])
    marks = torch.nonzero(inputs["input_ids"][0] == model.config.image_token_id).flatten()
    for stop, match in ((marks[-1] + 1, "ends within"), (marks[-1], "4 visual tokens"), (marks[-5] + 2, "form rows")):
        with pytest.raises(LayoutError, match=match):
            LAYOUT.image_tokens(model.config, {"input_ids": inputs["input_ids"][:, :stop]}, 0, [(60, 20), (30, 60)])
