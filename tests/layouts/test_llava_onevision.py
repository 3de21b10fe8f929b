"""LLaVA-OneVision's geometry against its processor and its model, at many sizes."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoConfig, LlavaOnevisionImageProcessor, LlavaOnevisionProcessor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image

from sparsemm.errors import LayoutError
from sparsemm.layouts import get_layout
from sparsemm.layouts.llava_onevision import unpadded
from sparsemm.prompts import build_inputs
from tests.families import made
from tests.layouts.geometry import check_boxes, check_order, check_tiling, draw_batches, embedded, inputs_of

NAME = "llava-onevision"
LAYOUT = get_layout("llava_onevision")


def sizes(count, most, seed=0):
    rng = random.Random(seed)
    extremes = [(1, 1), (1, 400), (400, 1), (384, 384), (most, most), (most, most // 3)]
    return extremes + [(rng.randint(1, most), rng.randint(1, most)) for _ in range(count - len(extremes))]


def test_counts_in_batches_of_several_images():
    """Rows of one image have a thumbnail and a grid, rows of several one square each; newlines are left over."""
    model, processor = made(NAME)
    shapes = set()
    for batch in draw_batches(150, 12, 260):
        inputs = inputs_of(processor, batch)
        for row, image_sizes in enumerate(batch):
            found = LAYOUT.image_tokens(model.config, inputs, row, image_sizes)
            marks = (inputs["input_ids"][row] == model.config.image_token_id).numpy()
            assert [tokens.size for tokens in found] == image_sizes
            used = [p for one in found for t in (one.thumbnail, one) if t is not None for p in t.positions]
            assert len(used) == len(set(used)) and marks[used].all()
            for tokens in found:
                if tokens.grid[0] * tokens.grid[1]:  # else an extreme shape, of which the thumbnail alone is left
                    check_tiling(tokens)
                    check_boxes(tokens)
                shapes.add((len(image_sizes) == 1, tokens.thumbnail is not None))
            if len(image_sizes) == 1:
                assert len(used) + found[0].grid[0] == marks.sum()
                assert used == sorted(used) and used[0] == np.flatnonzero(marks)[0]
            else:
                assert marks.sum() == 17 * len(image_sizes)
    assert shapes == {(True, True), (False, False)}


def test_counts_at_the_published_geometry():
    """Tiles of 384 px, patches of 14, 36 canvases, "anyres_max_9": hundreds of sizes by the processor's own count."""
    config = AutoConfig.for_model("llava_onevision")
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(),
        tokenizer=made(NAME)[1].tokenizer,
        video_processor=made(NAME)[1].video_processor,
        num_image_tokens=729,
        vision_feature_select_strategy="full",
    )
    scaled = 0
    for size in sizes(300, 3000, seed=1):
        (rows, columns), rectangles = unpadded(config, size)
        (want,) = processor._get_num_multimodal_tokens([size[::-1]])["num_image_tokens"]
        assert 729 + rows * (columns + 1) == want, size
        scaled += rows * columns > 0.8 * 9 * 729
        if rows * columns:
            area = (rectangles[:, 2] - rectangles[:, 0]) * (rectangles[:, 3] - rectangles[:, 1])
            assert area.min() > 0 and area.sum() == pytest.approx(size[0] * size[1])
    assert scaled > 30


def exact_edges(length, resized, offset, first, count, parts, side=58, patch=14):
    """Fractions: edges of `parts` equal parts of the canvas's cells `first` to `first + count`, in image pixels."""
    result = [Fraction(0)]
    for i in range(1, parts):
        tile, cell = divmod(first + Fraction(i * count, parts), side // patch)
        inside = (tile * side + cell * patch - offset) * length / resized
        result.append(min(max(inside, Fraction(0)), Fraction(length)))
    return [*result, Fraction(length)]


def test_edges_against_exact_fractions_of_the_processors_own_geometry():
    """Resize, offset, cut and scale come from the processor's and the model's functions, edges from fractions."""
    model, processor = made(NAME)
    own = processor.image_processor
    shrunk = 0
    for width, height in sizes(200, 400, seed=3):
        target = select_best_resolution((height, width), own.image_grid_pinpoints)
        new = get_patch_output_size(np.zeros((height, width, 1), bool), target, "channels_last")
        left, top = own._get_padding_size(new, target)[:2]
        high, wide = target[0] // 58 * 4, target[1] // 58 * 4
        cells = unpad_image(torch.arange(high * wide).view(1, high, wide), (height, width))[0]
        if not cells.numel():
            continue
        ratio = (cells.numel() / (4 * 16)) ** 0.5
        shape = tuple(int(n // ratio) for n in cells.shape) if ratio > 1.1 else tuple(cells.shape)
        shrunk += ratio > 1.1
        (rows, columns), rectangles = unpadded(model.config, (width, height))
        assert (rows, columns) == shape
        first_row, first_column = int(cells[0, 0]) // wide, int(cells[0, 0]) % wide
        y = exact_edges(height, new[0], top, first_row, cells.shape[0], rows)
        x = exact_edges(width, new[1], left, first_column, cells.shape[1], columns)
        want = [[x[c], y[r], x[c + 1], y[r + 1]] for r in range(rows) for c in range(columns)]
        np.testing.assert_allclose(rectangles, np.array(want, dtype=float), rtol=1e-12, atol=1e-9)
    assert shrunk > 30


@pytest.mark.parametrize("size", [(117, 50), (50, 117), (116, 116), (58, 29)])
def test_cells_of_whole_images_are_whole_patches_of_their_tile(size):
    """Four patches of 14 px show 56 of 58 px, so a cell is 14/58 of the image; the last one gets the rest."""
    model, processor = made(NAME)
    alone, shared = inputs_of(processor, [[size]]), inputs_of(processor, [[(80, 80), size]])
    (one,) = LAYOUT.image_tokens(model.config, alone, 0, [size])
    _, other = LAYOUT.image_tokens(model.config, shared, 0, [(80, 80), size])
    width, height = size
    cells = one.thumbnail.rectangles.reshape(4, 4, 4)
    assert cells[0, :, 2].tolist() == [float(Fraction(14 * i * width, 58)) for i in (1, 2, 3)] + [width]
    assert cells[:, 0, 3].tolist() == [float(Fraction(14 * i * height, 58)) for i in (1, 2, 3)] + [height]
    longest = max(size)  # of the square that is padded to
    ends = [Fraction(14 * i * longest, 58) for i in range(4)] + [Fraction(longest)]
    for length, axis in ((width, 0), (height, 1)):
        padding = (longest - length) // 2
        want = [float(e - padding) for e in ends if 0 < e - padding < length] + [length]
        assert sorted(set(other.rectangles[:, axis + 2])) == pytest.approx(want)


@pytest.mark.parametrize("size", [(100, 70), (230, 170), (90, 232)])
def test_the_model_puts_its_features_where_the_layout_says(size):
    """Features of the tiles, put together here, must be what the language model sees at the layout's positions."""
    model, processor = made(NAME)
    inputs = build_inputs(processor, [[Image.effect_noise(size, 80).convert("RGB")]], ["Read"])
    (tokens,) = LAYOUT.image_tokens(model.config, inputs, 0, [size])
    with torch.no_grad():
        states = model.model.vision_tower(inputs["pixel_values"][0], output_hidden_states=True).hidden_states[-1]
        features = model.model.multi_modal_projector(states)
    seen = embedded(model, inputs)[0]
    torch.testing.assert_close(seen[tokens.thumbnail.positions], features[0], rtol=1e-4, atol=1e-4)
    high, wide = (n // 58 for n in select_best_resolution(size[::-1], model.config.image_grid_pinpoints))
    whole = features[1:].view(high, wide, 4, 4, -1).permute(4, 0, 2, 1, 3).reshape(-1, high * 4, wide * 4)
    whole = unpad_image(whole, size[::-1])
    if tuple(whole.shape[1:]) != tokens.grid:
        assert size != (100, 70)
        whole = F.interpolate(whole[None], tokens.grid, mode="bilinear")[0]
    torch.testing.assert_close(seen[tokens.positions], whole.flatten(1).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("most", "cell", "per_row"), [(110, 18, 1), (230, 34, 1), (110, 30, 2)])
def test_pixels_that_change_lie_under_the_tokens_of_their_box(most, cell, per_row):
    """Small images, images whose grid is scaled down, and images that share a prompt."""
    check_order(*made(NAME), LAYOUT, most, cell, per_row)


def test_images_that_do_not_fit_the_prompt_are_refused():
    model, processor = made(NAME)
    first, second = (160, 60), (70, 150)
    inputs = inputs_of(processor, [[first], [second, first], []])
    for row, wrong in ((0, []), (0, [first, first]), (1, [second])):
        with pytest.raises(LayoutError, match="visual tokens"):
            LAYOUT.image_tokens(model.config, inputs, row, wrong)
    for row, wrong in ((0, [second]), (1, [first, second]), (2, [first])):
        with pytest.raises(LayoutError, match="the processor saw"):
            LAYOUT.image_tokens(model.config, inputs, row, wrong)
    for row in (-1, 3):
        with pytest.raises(LayoutError, match="no row"):
            LAYOUT.image_tokens(model.config, inputs, row, [first])
    assert LAYOUT.image_tokens(model.config, inputs, 2, []) == []
    text = inputs_of(processor, [[]])
    assert LAYOUT.image_tokens(model.config, text, 0, []) == []
