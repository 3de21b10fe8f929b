"""Qwen2-VL's geometry against its processor, at many sizes."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from sparsemm.errors import LayoutError
from sparsemm.layouts import box_positions, get_layout
from sparsemm.layouts.qwen2_vl import fits
from sparsemm.prompts import build_inputs

NAME = "tiny-qwen2-vl"
LAYOUT = get_layout("qwen2_vl")


def test_counts_and_tiling_on_hundreds_of_sizes_in_batches(tiny):
    model, processor = tiny(NAME)
    rng = random.Random(0)
    seen = 0
    while seen < 240:
        batch = [[(rng.randint(8, 260), rng.randint(8, 260)) for _ in range(rng.randint(0, 3))] for _ in range(4)]
        images = [[Image.new("RGB", size) for size in row] for row in batch]
        if not any(images):
            continue
        inputs = build_inputs(processor, images, ["Read the page."] * 4)
        for row, image_sizes in enumerate(batch):
            found = LAYOUT.image_tokens(model.config, inputs, row, image_sizes)
            marks = np.flatnonzero((inputs["input_ids"][row] == model.config.image_token_id).numpy())
            positions = [t.positions for t in found]
            assert (np.concatenate(positions) if positions else np.zeros(0)).tolist() == marks.tolist()
            for tokens, size in zip(found, image_sizes, strict=True):
                r = tokens.rectangles
                assert len(r) == tokens.grid[0] * tokens.grid[1] == len(tokens.positions)
                area = (r[:, 2] - r[:, 0]) * (r[:, 3] - r[:, 1])
                assert area.min() > 0 and area.sum() == pytest.approx(size[0] * size[1])
                assert (r[:, :2] >= 0).all() and r[:, 2].max() == size[0] and r[:, 3].max() == size[1]
                seen += 1


def test_pixels_that_change_lie_under_the_tokens_of_their_box(tiny):
    """A bright square changes the merged patches whose rectangle it touches, but for the blur of resizing."""
    model, processor = tiny(NAME)
    rng = random.Random(5)
    for _ in range(10):
        size = (rng.randint(60, 250), rng.randint(60, 250))
        x, y = rng.randint(0, size[0] - 30), rng.randint(0, size[1] - 30)
        box = (x, y, x + rng.randint(10, 30), y + rng.randint(10, 30))
        blank, marked = Image.new("RGB", size), Image.new("RGB", size)
        marked.paste((255, 255, 255), box)
        both = [build_inputs(processor, [[image]], ["Read"]) for image in (blank, marked)]
        change = (both[0]["pixel_values"] - both[1]["pixel_values"]).abs().amax(1)
        merged = change.view(-1, 4).amax(1).numpy()  # four patches of 7 px become one token, in the processor's order
        (tokens,) = LAYOUT.image_tokens(model.config, both[0], 0, [size])
        strong = set(tokens.positions[merged > 1.0].tolist())
        wide = (max(0, x - 9), max(0, y - 9), min(size[0], box[2] + 9), min(size[1], box[3] + 9))
        under = set(box_positions(tokens, box).tolist())
        assert strong and strong <= under
        assert set(tokens.positions[merged > 0.1].tolist()) <= set(box_positions(tokens, wide).tolist())


def test_boxes_against_exact_fractions(tiny):
    model, processor = tiny(NAME)
    rng = random.Random(3)
    for _ in range(60):
        width, height = rng.randint(8, 260), rng.randint(8, 260)
        inputs = build_inputs(processor, [[Image.new("RGB", (width, height))]], ["Read"])
        (tokens,) = LAYOUT.image_tokens(model.config, inputs, 0, [(width, height)])
        # The grid comes from the processor, rows and columns in raster order; every edge is a fraction.
        _, high, wide = (int(v) for v in inputs["image_grid_thw"][0])
        high, wide = high // 2, wide // 2
        for _ in range(10):
            x0, x1 = sorted(rng.sample(range(width + 1), 2))
            y0, y1 = sorted(rng.sample(range(height + 1), 2))
            want = [
                int(tokens.positions[r * wide + c])
                for r in range(high)
                for c in range(wide)
                if max(Fraction(r * height, high), y0) < min(Fraction((r + 1) * height, high), y1)
                and max(Fraction(c * width, wide), x0) < min(Fraction((c + 1) * width, wide), x1)
            ]
            assert box_positions(tokens, (x0, y0, x1, y1)).tolist() == want


def test_the_model_puts_its_features_where_the_layout_says(tiny):
    model, processor = tiny(NAME)
    sizes = [[(160, 60)], [(70, 150), (40, 40)]]
    images = [[Image.effect_noise(size, 80).convert("RGB") for size in row] for row in sizes]
    inputs = build_inputs(processor, images, ["Read"] * 2)
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
        hook.remove()
        for row in range(2):
            found = LAYOUT.image_tokens(model.config, inputs, row, sizes[row])
            for tokens, image in zip(found, images[row], strict=True):
                alone = processor.image_processor(images=[image], return_tensors="pt")
                features = model.model.visual(alone["pixel_values"], grid_thw=alone["image_grid_thw"]).pooler_output
                torch.testing.assert_close(seen["inputs_embeds"][row][tokens.positions], features, rtol=1e-3, atol=1e-4)


def test_every_smart_resize_fits_and_other_shapes_do_not():
    rng = random.Random(4)
    for _ in range(2000):
        width = rng.randint(1, rng.choice((40, 400, 6000)))
        height = rng.randint(max(1, width // 199 + 1), min(width * 199, rng.choice((400, 6000)) + width))
        for least, most in ((56 * 56, 28 * 28 * 1280), (196, 28 * 28 * 16), (28 * 28 * 256, 28 * 28 * 16384)):
            rows, columns = (v // 28 for v in smart_resize(height, width, 28, least, most))
            assert fits(width, height, rows, columns), (width, height, rows, columns)
    assert not fits(160, 60, 11, 4) and not fits(60, 160, 4, 11) and not fits(100, 100, 4, 8)


def test_images_that_do_not_fit_the_prompt_are_refused(tiny):
    model, processor = tiny(NAME)
    inputs = build_inputs(processor, [[Image.new("RGB", (100, 80))], []], ["Read"] * 2)
    for row, wrong in ((0, []), (0, [(100, 80)] * 2), (1, [(100, 80)])):
        with pytest.raises(LayoutError):
            LAYOUT.image_tokens(model.config, inputs, row, wrong)
    assert LAYOUT.image_tokens(model.config, inputs, 1, []) == []
    with pytest.raises(LayoutError, match="100x300 image does not make a grid"):
        LAYOUT.image_tokens(model.config, inputs, 0, [(100, 300)])
    for row in (-1, 2):
        with pytest.raises(LayoutError, match="no row"):
            LAYOUT.image_tokens(model.config, inputs, row, [(100, 80)])
