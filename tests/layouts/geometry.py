"""Properties that every layout has: its tokens are the prompt's, tile the image, and lie where a pixel shows."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import Image

from sparsemm.layouts import ImageTokens, Layout, box_positions
from sparsemm.layouts.qwen2_vl import fits
from sparsemm.prompts import build_inputs

Size = tuple[int, int]
OUTPUTS = (".out_proj.", ".o_proj.", ".attn.proj.", ".projection_layer.")  # of a vision tower's attention


def draw_batches(images: int, least: int, most: int, seed: int = 0) -> list[list[list[Size]]]:
    """Batches of 3 rows of 0 to 3 images of random (width, height), `images` images or more in all."""
    rng = random.Random(seed)
    batches, seen = [], 0
    while seen < images:
        counts = rng.sample((rng.randint(0, 3), 1, 2), 3)
        batches.append([[(rng.randint(least, most), rng.randint(least, most)) for _ in range(n)] for n in counts])
        seen += sum(counts)
    return batches


def inputs_of(processor: Any, batch: list[list[Size]]) -> Any:
    images = [[Image.new("RGB", size) for size in row] for row in batch]
    return build_inputs(processor, images, ["Read the page.", "What is sun?", "Read"][: len(batch)])


def check_tiling(tokens: ImageTokens) -> None:
    """Rectangles in raster order, as many as positions, cover the image without gap or overlap."""
    (rows, columns), (width, height) = tokens.grid, tokens.size
    assert len(tokens.positions) == len(tokens.rectangles) == rows * columns > 0
    assert len(set(tokens.positions)) == rows * columns
    cells = tokens.rectangles.reshape(rows, columns, 4)
    x, y = cells[0, :, [0, 2]], cells[:, 0, [1, 3]]
    for (first, last), length in ((x, width), (y.T, height)):
        assert first[0] == 0 and last[-1] == length and (first < last).all() and (first[1:] == last[:-1]).all()
    assert (cells[:, :, 0] == x[0]).all() and (cells[:, :, 2] == x[1]).all()
    assert (cells[:, :, 1] == y[:, :1]).all() and (cells[:, :, 3] == y[:, 1:]).all()


def check_boxes(tokens: ImageTokens, seed: int = 0) -> None:
    """The tokens of a random box are those whose rectangle it intersects."""
    rng = random.Random(seed)
    width, height = tokens.size
    for _ in range(4):
        x0, x1 = sorted(rng.sample(range(width + 1), 2))
        y0, y1 = sorted(rng.sample(range(height + 1), 2))
        want = [
            int(position)
            for position, (a, b, c, d) in zip(tokens.positions, tokens.rectangles, strict=True)
            if min(c, x1) - max(a, x0) > 0 and min(d, y1) - max(b, y0) > 0
        ]
        assert box_positions(tokens, (x0, y0, x1, y1)).tolist() == want and want


def check_batches(model: Any, processor: Any, layout: Layout, batches: list[list[list[Size]]]) -> None:
    """Of families whose placeholder tokens are all cells: each is some image's, in order; tilings and boxes hold."""
    for batch in batches:
        inputs = inputs_of(processor, batch)
        for row, sizes in enumerate(batch):
            found = layout.image_tokens(model.config, inputs, row, sizes)
            marks = np.flatnonzero((inputs["input_ids"][row] == model.config.image_token_id).numpy())
            assert [p for tokens in found for p in tokens.positions] == marks.tolist()
            assert [tokens.size for tokens in found] == sizes
            for tokens in found:
                check_tiling(tokens)
                check_boxes(tokens)


def check_published_grids(image_processor: Any, patch_size: int, limits: dict[str, int]) -> None:
    """A Qwen-VL processor at the real patch and limits, and hundreds of sizes by its own count."""
    rng = random.Random(1)
    own = type(image_processor)(patch_size=patch_size, merge_size=2, temporal_patch_size=2, size=limits)
    for number in range(300):
        width, height = rng.randint(28, 700), rng.randint(28, 700)
        count = own.get_number_of_image_patches(height, width, {})
        if number % 10 == 0:
            _, high, wide = own(Image.new("RGB", (width, height)), return_tensors="pt")["image_grid_thw"][0].tolist()
            assert high * wide == count and fits(width, height, high // 2, wide // 2)
        shapes = [(r, count // 4 // r) for r in range(1, count // 4 + 1) if count // 4 % r == 0]
        assert any(fits(width, height, *shape) for shape in shapes)


def check_views(model: Any, layout: Layout, inputs: Any, batch: list[list[Size]]) -> list[ImageTokens]:
    """Of families that cut images into tiles: every placeholder token is a cell of one view; all images, row by row."""
    images = []
    for row, sizes in enumerate(batch):
        found = layout.image_tokens(model.config, inputs, row, sizes)
        views = [view for tokens in found for view in (tokens, tokens.thumbnail) if view is not None]
        marks = np.flatnonzero((inputs["input_ids"][row] == model.config.image_token_id).numpy())
        assert sorted(p for view in views for p in view.positions) == marks.tolist()
        assert [tokens.size for tokens in found] == sizes
        for view in views:
            check_tiling(view)
        images += found
    return images


def check_exact_boxes(tokens: ImageTokens, x: list[Fraction], y: list[Fraction], rng: random.Random) -> None:
    """The tokens of a random box, which may end on an edge, are the cells between these edges that it intersects."""
    width, height = tokens.size
    assert tokens.grid == (len(y) - 1, len(x) - 1)
    whole = [[int(edge) for edge in axis if edge.denominator == 1] for axis in (x, y)]
    for _ in range(8):
        x0, x1 = sorted(rng.sample(rng.choice((range(width + 1), whole[0])), 2))
        y0, y1 = sorted(rng.sample(rng.choice((range(height + 1), whole[1])), 2))
        across = [c for c in range(len(x) - 1) if max(x[c], x0) < min(x[c + 1], x1)]
        down = [r for r in range(len(y) - 1) if max(y[r], y0) < min(y[r + 1], y1)]
        want = sorted(int(tokens.positions[r * (len(x) - 1) + c]) for r in down for c in across)
        assert box_positions(tokens, (x0, y0, x1, y1)).tolist() == want


@torch.no_grad()
def embedded(model: Any, inputs: Any) -> torch.Tensor:
    """What the language model gets: (B, S, hidden), image features in their places."""
    seen: dict[str, Any] = {}
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, arguments, options: seen.update(options), with_kwargs=True
    )
    try:
        model(**inputs)
    finally:
        hook.remove()
    return seen["inputs_embeds"]


def cut_attention(model: Any) -> dict[str, torch.Tensor]:
    """Silence the vision tower's attention, so that a patch shows in its own token alone; returns what was there."""
    before = {}
    for name, weight in model.named_parameters():
        if ("visual" in name or "vision" in name) and any(end in name for end in OUTPUTS):
            before[name] = weight.detach().clone()
            weight.data.zero_()
    assert before
    return before


def restore(model: Any, before: dict[str, torch.Tensor]) -> None:
    own = dict(model.named_parameters())
    for name, weight in before.items():
        own[name].data.copy_(weight)


def changed(model: Any, processor: Any, row: list[Size], which: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """(S,) float64: how much a bright square in one of a row's images moves the model's input at every position."""
    images = [Image.new("RGB", size) for size in row]
    inputs = build_inputs(processor, [images], ["Read"])
    images[which].paste((255, 255, 255), box)
    other = build_inputs(processor, [images], ["Read"])
    assert inputs["input_ids"].tolist() == other["input_ids"].tolist()
    return (embedded(model, inputs) - embedded(model, other)).abs().amax(-1)[0].double().numpy()


def around(view: ImageTokens, box: tuple[int, int, int, int]) -> np.ndarray:
    """Positions of the cells that a box touches if one cell is added on every side."""
    r, (width, height) = view.rectangles, view.size
    across, down = (r[:, 2] - r[:, 0]).max(), (r[:, 3] - r[:, 1]).max()
    x0, y0, x1, y1 = box
    wide = (max(0, x0 - across), max(0, y0 - down), min(width, x1 + across), min(height, y1 + down))
    return box_positions(view, wide)


def check_order(model: Any, processor: Any, layout: Layout, most: int, cell: int, per_row: int = 1) -> None:
    """A bright square changes the features of all tokens inside it most, and of none further off than a cell.

    Args:
        most: px of an image at most.
        cell: px that the box is long at least, and half of what an image is.
        per_row: images in the prompt; the last one changes.
    """
    before = cut_attention(model)
    try:
        rng = random.Random(5)
        for _ in range(8):
            row = [(rng.randint(2 * cell, most), rng.randint(2 * cell, most)) for _ in range(per_row)]
            width, height = row[-1]
            x, y = rng.randint(0, width - 2 * cell), rng.randint(0, height - 2 * cell)
            box = (x, y, x + rng.randint(cell, 2 * cell), y + rng.randint(cell, 2 * cell))
            change = changed(model, processor, row, per_row - 1, box)
            tokens = layout.image_tokens(model.config, inputs_of(processor, [row]), 0, row)[-1]
            views = [view for view in (tokens, tokens.thumbnail) if view is not None]
            near = np.concatenate([around(view, box) for view in views])
            moved = np.flatnonzero(change > 1e-3 * change.max())
            assert np.isin(moved, near).all(), (row, box)
            assert tokens.positions[change[tokens.positions].argmax()] in box_positions(tokens, box)
            for view in views:
                r = view.rectangles
                inside = (r[:, 0] >= x) & (r[:, 1] >= y) & (r[:, 2] <= box[2]) & (r[:, 3] <= box[3])
                assert np.isin(view.positions[inside], moved).all(), (row, box)
    finally:
        restore(model, before)
