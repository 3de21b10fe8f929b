"""Qwen2-VL's geometry, which later Qwen models share, against their processors and models, at many sizes."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from sparsemm.errors import LayoutError
from sparsemm.layouts import box_positions, get_layout
from sparsemm.layouts.qwen2_vl import fits
from sparsemm.prompts import build_inputs
from tests.families import made
from tests.layouts.geometry import check_batches, check_order, check_published_grids, draw_batches, embedded

NAME = "tiny-qwen2-vl"
LAYOUT = get_layout("qwen2_vl")


FAMILIES = {  # name of the tiny model -> family, patch and limits of the published processor
    "qwen2-vl": ("qwen2_vl", 14, (3136, 1003520)),
    "qwen2.5-vl": ("qwen2_5_vl", 14, (3136, 1003520)),
    "qwen3-vl": ("qwen3_vl", 16, (4096, 1310720)),
    "qwen3.5": ("qwen3_5", 16, (65536, 16777216)),
    "qwen3.5-moe": ("qwen3_5", 16, (65536, 16777216)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_counts_tiling_and_boxes_in_batches_of_several_images(name):
    check_batches(*made(name), get_layout(FAMILIES[name][0]), draw_batches(240, 12, 260))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen3.5-moe"])
def test_grids_of_the_published_geometry_are_accepted(name):
    _, patch, (least, most) = FAMILIES[name]
    limits = {"shortest_edge": least, "longest_edge": most}
    check_published_grids(made(name)[1].image_processor, patch_size=patch, limits=limits)


@pytest.mark.parametrize("per_row", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_that_change_lie_under_the_tokens_of_their_box(name, per_row):
    """Read off the features that take the tokens' places; Qwen2.5-VL's tower sorts patches into windows and back."""
    check_order(*made(name), get_layout(FAMILIES[name][0]), most=120, cell=16, per_row=per_row)


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
    inserted = embedded(model, inputs)
    with torch.no_grad():
        for row in range(2):
            found = LAYOUT.image_tokens(model.config, inputs, row, sizes[row])
            for tokens, image in zip(found, images[row], strict=True):
                alone = processor.image_processor(images=[image], return_tensors="pt")
                features = model.model.visual(alone["pixel_values"], grid_thw=alone["image_grid_thw"]).pooler_output
                torch.testing.assert_close(inserted[row][tokens.positions], features, rtol=1e-3, atol=1e-4)


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
