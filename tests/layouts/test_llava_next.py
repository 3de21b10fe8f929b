"""LLaVA-NeXT's geometry against its processor and its model, at many sizes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from sparsemm.errors import LayoutError
from sparsemm.layouts import box_positions, get_layout
from sparsemm.layouts.llava_next import grid
from sparsemm.prompts import build_inputs

NAME = "tiny-llava-next-mistral"
LAYOUT = get_layout("llava_next")


def sizes(count, most, seed=0):
    rng = random.Random(seed)
    extremes = [(1, 1), (1, 400), (400, 1), (84, 84), (168, 84), (85, 83), (most, most)]
    return extremes + [(rng.randint(1, most), rng.randint(1, most)) for _ in range(count - len(extremes))]


def tiles(rectangles, size):
    """Whether rectangles cover the image without gap or overlap: sorted into rows, edges meet exactly."""
    width, height = size
    rows = {}
    for x0, y0, x1, y1 in rectangles:
        rows.setdefault((y0, y1), []).append((x0, x1))
    edges = sorted(rows)
    whole = edges[0][0] == 0 and edges[-1][1] == height
    whole &= all(a[1] == b[0] for a, b in zip(edges, edges[1:], strict=False))
    for spans in rows.values():
        spans.sort()
        whole &= spans[0][0] == 0 and spans[-1][1] == width
        whole &= all(a[1] == b[0] and a[0] < a[1] for a, b in zip(spans, spans[1:], strict=False))
    return whole


def test_counts_and_tiling_on_hundreds_of_sizes(tiny):
    model, processor = tiny(NAME)
    for size in sizes(300, 500):
        rows, columns = grid(model.config, *size)[0]
        want = processor._get_num_multimodal_tokens([size[::-1]])["num_image_tokens"][0]
        assert 36 + rows * (columns + 1) == want, size
        if rows * columns:
            assert tiles(grid(model.config, *size)[1], size), size


def test_counts_at_the_real_geometry():
    """336 px tiles of 14 px patches, the published pinpoints: the counts that are known, and random sizes."""
    config = AutoConfig.for_model(
        "llava_next",
        vision_config={"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    )
    known = {(336, 336): 1176, (640, 480): 2340, (480, 640): 2352, (672, 672): 2928, (1920, 1080): 1948}
    for size, count in known.items():
        (rows, columns), rectangles = grid(config, *size)
        assert 576 + rows * (columns + 1) == count
        assert tiles(rectangles, size)
    for size in sizes(100, 3000, seed=1):
        (rows, columns), rectangles = grid(config, *size)
        assert not rows * columns or tiles(rectangles, size)


def test_prompts_with_several_images_in_a_padded_batch(tiny):
    model, processor = tiny(NAME)
    rng = random.Random(2)
    for _ in range(12):
        batch = [[(rng.randint(20, 300), rng.randint(20, 300)) for _ in range(n)] for n in (1, 2, 3)]
        images = [[Image.new("RGB", size) for size in row] for row in batch]
        inputs = build_inputs(processor, images, ["Read the page."] * 3)
        marks = inputs["input_ids"] == model.config.image_token_id
        for row, image_sizes in enumerate(batch):
            found = LAYOUT.image_tokens(model.config, inputs, row, image_sizes)
            every = np.concatenate([np.concatenate([t.thumbnail.positions, t.positions]) for t in found])
            assert len(set(every)) == len(every) and marks[row][every].all()
            newlines = sum(t.grid[0] for t in found)
            assert len(every) + newlines == int(marks[row].sum())
            assert [t.size for t in found] == image_sizes


def test_the_model_puts_its_features_where_the_layout_says(tiny):
    """Features of the grid, computed tile by tile, must be the ones the model sees at the layout's positions."""
    model, processor = tiny(NAME)
    image = Image.effect_noise((160, 120), 80).convert("RGB")
    inputs = build_inputs(processor, [[image]], ["Read"])
    (tokens,) = LAYOUT.image_tokens(model.config, inputs, 0, [image.size])
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
        hook.remove()
        pixels = inputs["pixel_values"][0]
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        features = model.model.multi_modal_projector(states)
    embedded = seen["inputs_embeds"][0]
    torch.testing.assert_close(embedded[tokens.thumbnail.positions], features[0])
    high, wide = 2, 2  # a 160 x 120 page goes to the 168 x 168 pinpoint
    whole = features[1:].view(high, wide, 6, 6, -1).permute(0, 2, 1, 3, 4).reshape(12, 12, -1)
    rows, columns = tokens.grid
    cut = (12 - rows) // 2
    assert columns == 12 and rows < 12
    torch.testing.assert_close(embedded[tokens.positions], whole[cut : 12 - cut].flatten(0, 1))


def test_pixels_that_change_lie_under_the_tokens_of_their_box(tiny):
    """A bright square changes exactly those patches whose rectangle it touches, but for the blur of resizing."""
    model, processor = tiny(NAME)
    rng = random.Random(5)
    for _ in range(10):
        size = (rng.randint(60, 300), rng.randint(60, 300))
        x, y = rng.randint(0, size[0] - 30), rng.randint(0, size[1] - 30)
        box = (x, y, x + rng.randint(10, 30), y + rng.randint(10, 30))
        blank, marked = Image.new("RGB", size), Image.new("RGB", size)
        marked.paste((255, 255, 255), box)
        both = [build_inputs(processor, [[image]], ["Read"]) for image in (blank, marked)]
        change = (both[0]["pixel_values"] - both[1]["pixel_values"])[0, 1:].abs().amax(1)  # tiles, without thumbnail
        (rows, columns), _ = grid(model.config, *size)
        (tokens,) = LAYOUT.image_tokens(model.config, both[0], 0, [size])
        high = 1 if len(change) == 1 else len(change) // (2 if columns > 6 else 1)
        wide = len(change) // high
        patches = change.view(high, wide, 6, 14, 6, 14).amax((3, 5)).permute(0, 2, 1, 3).reshape(high * 6, wide * 6)
        top, left = (high * 6 - rows) // 2, (wide * 6 - columns) // 2
        patches = patches[top : top + rows, left : left + columns].flatten()
        strong = set(tokens.positions[(patches > 1.0).numpy()].tolist())
        touched = set(tokens.positions[(patches > 0.1).numpy()].tolist())
        wide_box = (max(0, x - 9), max(0, y - 9), min(size[0], box[2] + 9), min(size[1], box[3] + 9))
        assert strong and strong <= set(box_positions(tokens, box).tolist())
        assert touched <= set(box_positions(tokens, wide_box).tolist())


def test_wrong_number_or_size_of_images_is_refused(tiny):
    model, processor = tiny(NAME)
    inputs = build_inputs(processor, [[Image.new("RGB", (100, 80))]], ["Read"])
    for wrong in ([], [(100, 80), (100, 80)], [(300, 80)]):
        with pytest.raises(LayoutError, match="visual tokens"):
            LAYOUT.image_tokens(model.config, inputs, 0, wrong)
