"""Gemma 3's geometry against its processor and its model, at many sizes, with and without pan and scan."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from transformers import Gemma3Config, Gemma3Processor

from sparsemm.errors import LayoutError
from sparsemm.layouts import get_layout
from sparsemm.layouts.gemma3 import crop_counts
from tests.families import made
from tests.layouts.geometry import check_exact_boxes, check_order, check_views, draw_batches, inputs_of

LAYOUT = get_layout("gemma3")


class PanAndScan(Gemma3Processor):
    """The processor, called as it is for pan and scan."""

    crops = dict(pan_and_scan_min_crop_size=16, pan_and_scan_max_num_crops=4, pan_and_scan_min_ratio_to_activate=1.2)

    def __call__(self, images=None, text=None, **options):
        return super().__call__(images, text, do_pan_and_scan=True, **self.crops, **options)


def model_and_processor(pan_and_scan):
    model, processor = made("gemma3")
    if pan_and_scan:
        processor = PanAndScan(
            processor.image_processor, processor.tokenizer, chat_template=processor.chat_template, image_seq_length=16
        )
    return model, processor


def crops_of(processor, size):
    """(left, top, right, bottom) of the crops that the processor's own function makes of an image."""
    width, height = size
    where = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    crops = processor.image_processor.pan_and_scan_batched(where, **PanAndScan.crops)
    return [(int(c[1].min()), int(c[0].min()), int(c[1].max()) + 1, int(c[0].max()) + 1) for c in crops]


def exact_edges(spans):
    """Fractions: four equal cells of every span (first pixel, pixel after the last)."""
    inner = [Fraction(4 * start + (stop - start) * cell, 4) for start, stop in spans for cell in range(4)]
    return [*inner, Fraction(spans[-1][1])]


@pytest.mark.parametrize("pan_and_scan", [False, True])
def test_every_visual_token_is_a_cell_and_boxes_take_what_they_intersect(pan_and_scan):
    model, processor = model_and_processor(pan_and_scan)
    rng, cropped = random.Random(1), 0
    for batch in draw_batches(60, 8, 260):
        for tokens in check_views(model, LAYOUT, inputs_of(processor, batch), batch):
            crops = crops_of(processor, tokens.size) if pan_and_scan else []
            cropped += len(crops) > 0
            assert (tokens.thumbnail is not None) == (len(crops) > 0)
            crops = crops or [(0, 0, *tokens.size)]
            x, y = (sorted({(crop[axis], crop[axis + 2]) for crop in crops}) for axis in (0, 1))
            check_exact_boxes(tokens, exact_edges(x), exact_edges(y), rng)
    assert (cropped > 10) == pan_and_scan


@pytest.mark.parametrize("pan_and_scan", [False, True])
def test_pixels_that_change_lie_under_the_tokens_of_their_box(pan_and_scan):
    model, processor = model_and_processor(pan_and_scan)
    check_order(model, processor, LAYOUT, most=120, cell=16)
    check_order(model, processor, LAYOUT, most=120, cell=16, per_row=2)


def test_the_published_geometry():
    """896 px, patches of 14 px, 4 x 4 of them pooled."""
    config = Gemma3Config(image_token_index=9, vision_config={"image_size": 896, "patch_size": 14})
    inputs = {"input_ids": torch.tensor([[1, *[9] * 256, 1]])}
    (tokens,) = LAYOUT.image_tokens(config, inputs, 0, [(160, 320)])
    assert tokens.grid == (16, 16) and tokens.rectangles[17].tolist() == [10, 20, 20, 40]


def test_crops_of_several_images_are_told_apart_by_what_stands_between_them():
    wide, tall, square = (300, 100), (100, 400), (100, 100)
    intro, between, other, another = (1, 2, 3), (1,), (4,), (5, 5)

    def counts(gaps, sizes):
        return crop_counts(gaps, sizes, "row 0")

    assert counts([intro, between, between, other, intro, between], [wide, tall]) == [3, 2]
    assert counts([another, intro, between], [square, wide]) == [0, 2]
    assert counts([intro, between, other, other], [wide, square, square]) == [2, 0, 0]
    assert counts([other, another], [wide, tall, square]) == [0, 0, 0]
    assert counts([intro], [wide]) == [1] and counts([], [wide]) == [0]
    for gaps, sizes in (
        ([other, intro, between], [square, square, wide]),
        ([intro, between, between], [square]),  # more crops than a square can have
        ([intro, between, another, other], [wide, tall]),
        ([intro, other, intro], [wide, wide]),  # one crop each: where the first image ends is not to be seen
        ([intro, between, (7,) * 9], [wide, square]),  # text between the images
        ([between], []),
    ):
        with pytest.raises(LayoutError, match="views"):
            counts(gaps, sizes)


def test_other_images_than_the_prompts_are_refused():
    model, processor = made("gemma3")
    inputs = inputs_of(processor, [[(60, 30), (30, 60)]])
    for wrong in ([], [(60, 30)] * 3):
        with pytest.raises(LayoutError, match="image sizes for 2 views"):
            LAYOUT.image_tokens(model.config, inputs, 0, wrong)
    with pytest.raises(LayoutError, match="1 image sizes for 0 views"):
        LAYOUT.image_tokens(model.config, inputs_of(processor, [[]]), 0, [(60, 30)])
    with pytest.raises(LayoutError, match="no row"):
        LAYOUT.image_tokens(model.config, inputs, 1, [(60, 30)])
    cut = {"input_ids": inputs["input_ids"][:, :-10]}
    cut["input_ids"] = torch.cat([cut["input_ids"][:, :20], cut["input_ids"][:, 24:]], dim=1)
    with pytest.raises(LayoutError, match="16 visual tokens"):
        LAYOUT.image_tokens(model.config, cut, 0, [(60, 30)] * 2)
