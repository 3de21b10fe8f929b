"""LLaVA-NeXT's geometry against its processor and its model, at many sizes."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, LlavaNextImageProcessor, LlavaNextProcessor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from sparsemm.errors import LayoutError
from sparsemm.layouts import ImageTokens, box_positions, get_layout
from sparsemm.layouts.anyres import grid
from sparsemm.prompts import build_inputs
from tests.families import made
from tests.layouts.geometry import check_exact_boxes, check_order, check_tiling, embedded

NAME = "tiny-llava-next-mistral"
LAYOUT = get_layout("llava_next")
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def real_config(side=336):
    """The published geometry: tiles of `side` pixels, patches of 14."""
    vision = {"model_type": "clip_vision_model", "image_size": side, "patch_size": 14}
    pinpoints = [[h // 336 * side, w // 336 * side] for h, w in PINPOINTS]
    return AutoConfig.for_model("llava_next", vision_config=vision, image_grid_pinpoints=pinpoints)


def sizes(count, most, seed=0):
    rng = random.Random(seed)
    extremes = [(1, 1), (1, 400), (400, 1), (84, 84), (168, 84), (85, 83), (most, most)]
    return extremes + [(rng.randint(1, most), rng.randint(1, most)) for _ in range(count - len(extremes))]


def check_grid(config, size):
    """The rectangles of an image's grid cover it; an extreme shape has none. Returns (rows, columns)."""
    shape, rectangles = grid(config, *size)
    if shape[0] * shape[1]:
        check_tiling(ImageTokens(np.arange(len(rectangles)), rectangles, shape, size))
    return shape


def test_counts_and_tiling_on_hundreds_of_sizes(tiny):
    model, processor = tiny(NAME)
    for size in sizes(300, 500):
        rows, columns = check_grid(model.config, size)
        want = processor._get_num_multimodal_tokens([size[::-1]])["num_image_tokens"][0]
        assert 36 + rows * (columns + 1) == want, size


def exact_edges(length, resized, offset, kept):
    """Fractions: the edges in the image of the kept 14 px cells of the canvas; borders belong to the outermost."""
    inner = [(Fraction(cell * 14 - offset) * length) / resized for cell in kept[1:]]
    return [Fraction(0), *inner, Fraction(length)]


def test_boxes_against_exact_fractions_of_the_processors_own_geometry():
    """Resize, offset and cut come from the processor's and the model's functions, edges and overlaps from fractions."""
    config, image_processor = real_config(), LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS)
    rng = random.Random(6)
    seen = 0
    while seen < 200:
        width, height = (rng.randint(1, rng.choice((60, 500, 3000))) for _ in range(2))
        target = select_best_resolution((height, width), PINPOINTS)
        new = get_patch_output_size(np.zeros((height, width, 1), bool), target, "channels_last")
        left, top = image_processor._get_padding_size(new, target)[:2]
        cells = torch.arange(target[0] // 14 * (target[1] // 14)).view(1, target[0] // 14, -1)
        left_over = unpad_image(cells, (height, width))[0]
        if not left_over.numel():
            continue
        seen += 1
        y = exact_edges(height, new[0], top, (left_over[:, 0] // cells.shape[2]).tolist())
        x = exact_edges(width, new[1], left, (left_over[0] % cells.shape[2]).tolist())
        (rows, columns), rectangles = grid(config, width, height)
        assert (rows, columns) == tuple(left_over.shape) == (len(y) - 1, len(x) - 1)
        tokens = ImageTokens(np.arange(rows * columns), rectangles, (rows, columns), (width, height))
        check_exact_boxes(tokens, x, y, rng)


def test_tiles_that_are_not_whole_patches_do_not_drift():
    """384 px tiles hold 27 patches of 14 px; counted on, the third tile would begin 12 px early."""
    config = real_config(384)
    (rows, columns), rectangles = grid(config, 1152, 384)
    assert (rows, columns) == (27, 81)
    assert rectangles[27, 0] == 384 and rectangles[54, 0] == 768  # the first cells of the second and third tile
    for size in sizes(100, 2000, seed=7):
        check_grid(config, size)


def test_counts_at_the_real_geometry(tiny):
    """336 px tiles of 14 px patches, the published pinpoints: the counts that are known, and random sizes."""
    config = real_config()
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, size={"shortest_edge": 336}),
        tokenizer=tiny(NAME)[1].tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    known = {(336, 336): 1176, (640, 480): 2340, (480, 640): 2352, (672, 672): 2928, (1920, 1080): 1948}
    for size, count in known.items():
        rows, columns = check_grid(config, size)
        assert 576 + rows * (columns + 1) == count
    for size in sizes(200, 3000, seed=1):
        rows, columns = check_grid(config, size)
        assert processor._get_num_multimodal_tokens([size[::-1]])["num_image_tokens"] == [576 + rows * (columns + 1)]


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


def test_the_model_makes_as_many_features_as_the_layout_counts(tiny):
    model, processor = tiny(NAME)
    images = [Image.new("RGB", size) for size in sizes(40, 400, seed=8)]
    made = processor.image_processor(images=images, return_tensors="pt")
    with torch.no_grad():
        features = model.model.get_image_features(made["pixel_values"], made["image_sizes"]).pooler_output
    shapes = [grid(model.config, *image.size)[0] for image in images]
    assert [len(one) for one in features] == [36 + rows * (columns + 1) for rows, columns in shapes]


@pytest.mark.parametrize("size", [(160, 120), (120, 160)])
def test_the_model_puts_its_features_where_the_layout_says(tiny, size):
    """Features of the grid, computed tile by tile, must be the ones the model sees at the layout's positions."""
    model, processor = tiny(NAME)
    image = Image.effect_noise(size, 80).convert("RGB")
    inputs = build_inputs(processor, [[image]], ["Read"])
    (tokens,) = LAYOUT.image_tokens(model.config, inputs, 0, [image.size])
    inserted = embedded(model, inputs)[0]
    with torch.no_grad():
        pixels = inputs["pixel_values"][0]
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        features = model.model.multi_modal_projector(states)
    torch.testing.assert_close(inserted[tokens.thumbnail.positions], features[0])
    high, wide = 2, 2  # both pages go to the 168 x 168 pinpoint
    whole = features[1:].view(high, wide, 6, 6, -1).permute(0, 2, 1, 3, 4).reshape(12, 12, -1)
    rows, columns = tokens.grid
    assert max(rows, columns) == 12 > min(rows, columns)
    top, left = (12 - rows) // 2, (12 - columns) // 2
    torch.testing.assert_close(inserted[tokens.positions], whole[top : 12 - top, left : 12 - left].flatten(0, 1))


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


def test_sizes_in_another_order_than_the_processors_are_refused(tiny):
    """They give the same number of tokens, but other rectangles."""
    model, processor = tiny(NAME)
    first, second, third = (90, 90), (160, 60), (70, 150)
    images = [[Image.new("RGB", first)], [Image.new("RGB", second), Image.new("RGB", third)]]
    inputs = build_inputs(processor, images, ["Read"] * 2)
    assert [t.size for t in LAYOUT.image_tokens(model.config, inputs, 1, [second, third])] == [second, third]
    with pytest.raises(LayoutError, match="the processor saw"):
        LAYOUT.image_tokens(model.config, inputs, 1, [third, second])
    for row in (-1, 2):
        with pytest.raises(LayoutError, match="no row"):
            LAYOUT.image_tokens(model.config, inputs, row, [first])
    del inputs["image_sizes"]  # then the sizes given are all there is
    assert [t.size for t in LAYOUT.image_tokens(model.config, inputs, 1, [second, third])] == [second, third]


def test_a_llama_3_models_features_move_under_the_tokens_of_the_box():
    """Read off the features in the tokens' places, at pinpoints of several shapes."""
    check_order(*made("llava-next-llama3"), LAYOUT, most=110, cell=20)
