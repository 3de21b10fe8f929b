"""Batches are what the real processor and model would make of the pages, whoever draws them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.training.architectures import build
from sparsemm.training.batches import BatchMaker, PageFeed

STYLES = [PageStyle(1, 6, (3, 6)), PageStyle(2, 6, (6, 12))]


def plan(number: int, stage: int) -> tuple[PageStyle, bool]:
    return STYLES[number % 2], stage == 0


@pytest.mark.parametrize("style", STYLES, ids=["one column", "two columns"])
@pytest.mark.parametrize("name", ["tiny-llava-next-vicuna", "tiny-qwen2-vl"])
def test_pixels_are_the_processors(tiny, name, style):
    _, processor = tiny(name)
    batch = BatchMaker(processor, 5).make(3, style, True).to("cpu")
    images = [draw_record("train", 5, index, style).image for index in range(3)]
    want = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    got = batch.inputs["pixel_values"]
    assert got.dtype == torch.float32 and got.shape == want.shape
    # The thumbnail of a page of two columns is resized by another implementation.
    exact = slice(None) if "qwen" in name else (slice(None), slice(1, None))
    assert torch.allclose(got[exact], want[exact], atol=1e-5)


@pytest.mark.parametrize("style", STYLES, ids=["one column", "two columns"])
@pytest.mark.parametrize("read", [True, False])
def test_positions_are_the_models(style, read):
    model, processor = build("tiny-qwen2-vl")
    inputs = BatchMaker(processor, 5).make(3, style, read).inputs
    want, _ = model.model.get_rope_index(
        inputs["input_ids"], image_grid_thw=inputs["image_grid_thw"], mm_token_type_ids=inputs["mm_token_type_ids"]
    )
    assert torch.equal(inputs["position_ids"], want)


def test_one_process_draws_the_same_batches_as_the_maker_itself(tiny):
    _, processor = tiny("tiny-qwen2-vl")
    feed, maker = PageFeed(BatchMaker(processor, 0), 2, plan), BatchMaker(processor, 0)
    for number in range(3):
        got, want = feed.next(number, 1), maker.make(2, *plan(number, 1))
        assert torch.equal(got.inputs["input_ids"], want.inputs["input_ids"])
        assert torch.equal(got.inputs["pixel_values"], want.inputs["pixel_values"])


def test_a_worker_draws_ahead_and_follows_the_stage_and_the_number(tiny):
    _, processor = tiny("tiny-qwen2-vl")
    feed = PageFeed(BatchMaker(processor, 0), 2, plan, workers=1)
    for number, stage in ((0, 0), (1, 0), (2, 1), (7, 1)):  # the next stage, then a jump as after a resume
        maker = BatchMaker(processor, 0)
        maker.drawn = 2 * number
        maker.rng.seed(f"batches/0/page batch {number}")
        want, got = maker.make(2, *plan(number, stage)), feed.next(number, stage)
        assert np.array_equal(got.labels, want.labels) and torch.equal(got.pointers, want.pointers)
        assert torch.equal(got.inputs["pixel_values"], want.inputs["pixel_values"])
