"""Properties every layout must have, held against the family's own processor and model."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from sparsemm.layouts import ImageTokens, box_positions
from sparsemm.prompts import build_inputs

Batch = list[list[tuple[int, int]]]


def random_batches(seed: int, images: int, least: int, most: int) -> Iterator[Batch]:
    """Batches of two or three rows of nought to three sizes (width, height), until `images` sizes are made."""
    rng, made = random.Random(seed), 0
    while made < images:
        batch = [
            [(rng.randint(least, most), rng.randint(least, most)) for _ in range(rng.randint(0, 3))]
            for _ in range(rng.randint(2, 3))
        ]
        if any(batch):
            made += sum(len(row) for row in batch)
            yield batch


def inputs_of(processor: Any, batch: Batch) -> Any:
    """What the processor makes of blank images of these sizes."""
    return build_inputs(
        processor, [[Image.new("RGB", size) for size in row] for row in batch], ["Read it"] * len(batch)
    )


def assert_tiles(tokens: ImageTokens) -> None:
    """The rectangles are the cells of a grid in raster order that covers the image without gap or overlap."""
    rows, columns = tokens.grid
    assert tokens.rectangles.shape == (rows * columns, 4) and tokens.positions.shape == (rows * columns,)
    r = tokens.rectangles.reshape(rows, columns, 4)
    x, y = np.append(r[0, :, 0], r[0, -1, 2]), np.append(r[:, 0, 1], r[-1, 0, 3])
    assert (np.diff(x) > 0).all() and (np.diff(y) > 0).all()
    assert (x[0], x[-1], y[0], y[-1]) == (0, tokens.size[0], 0, tokens.size[1])
    assert (r[:, :, 0] == x[:-1]).all() and (r[:, :, 2] == x[1:]).all()
    assert (r[:, :, 1] == y[:-1, None]).all() and (r[:, :, 3] == y[1:, None]).all()


def assert_found(layout: Any, config: Any, inputs: Any, batch: Batch) -> list[ImageTokens]:
    """Every visual token of the batch belongs to one cell of one image; all images of the batch, row after row."""
    found = [layout.image_tokens(config, inputs, row, sizes) for row, sizes in enumerate(batch)]
    for row, images in enumerate(found):
        assert [one.size for one in images] == batch[row]
        views = [view for one in images for view in (one, one.thumbnail) if view is not None]
        for view in views:
            assert_tiles(view)
        marks = torch.nonzero(inputs["input_ids"][row] == config.image_token_id).flatten().tolist()
        assert sorted(p for view in views for p in view.positions.tolist()) == marks
    return [one for images in found for one in images]


def assert_boxes(tokens: ImageTokens, x_edges: list, y_edges: list, rng: random.Random) -> None:
    """Random boxes, some of which end on an edge, take the cells that they intersect; edges are fractions."""
    width, height = tokens.size
    assert tokens.grid == (len(y_edges) - 1, len(x_edges) - 1)
    whole = [[int(e) for e in axis if e.denominator == 1] for axis in (x_edges, y_edges)]
    for _ in range(8):
        x0, x1 = sorted(rng.sample(rng.choice((range(width + 1), whole[0])), 2))
        y0, y1 = sorted(rng.sample(rng.choice((range(height + 1), whole[1])), 2))
        across = [c for c in range(len(x_edges) - 1) if max(x_edges[c], x0) < min(x_edges[c + 1], x1)]
        down = [r for r in range(len(y_edges) - 1) if max(y_edges[r], y0) < min(y_edges[r + 1], y1)]
        want = sorted(int(tokens.positions[r * (len(x_edges) - 1) + c]) for r in down for c in across)
        assert sorted(box_positions(tokens, (x0, y0, x1, y1)).tolist()) == want


@contextmanager
def features(model: Any) -> Iterator[list[torch.Tensor]]:
    """The embeddings (B, S, hidden) that reach the language model, of every forward."""
    seen: list[torch.Tensor] = []
    language = getattr(model.model, "language_model", None) or model.model.text_model
    hook = language.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


def without_attention(model: Any) -> Any:
    """A copy whose vision tower mixes no patches: a visual token then depends on its own pixels alone."""
    blind = copy.deepcopy(model)
    silenced = 0
    for name, module in blind.named_modules():
        if name.endswith((".out_proj", ".o_proj", ".projection_layer")) and "vision" in name:
            torch.nn.init.zeros_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
            silenced += 1
    assert silenced
    return blind


def assert_order(layout: Any, model: Any, processor: Any, sizes: list[tuple[int, int]], blur: float) -> None:
    """A white box changes the features of all cells inside it, and of none that it is far from.

    Args:
        sizes: of images, each alone in its prompt.
        blur: pixels of the original that resizing may carry the box's border.
    """
    blind, rng = without_attention(model), random.Random(5)
    for size in sizes:
        x0, x1 = sorted(rng.sample(range(size[0] + 1), 2))
        y0, y1 = sorted(rng.sample(range(size[1] + 1), 2))
        blank, marked = Image.new("RGB", size), Image.new("RGB", size)
        marked.paste((255, 255, 255), (x0, y0, x1, y1))
        with features(blind) as seen, torch.no_grad():
            for image in (blank, marked):
                inputs = build_inputs(processor, [[image]], ["Read it"])
                blind(**inputs)
        changed = (seen[0] - seen[1])[0].abs().amax(-1) > 1e-4
        (tokens,) = layout.image_tokens(model.config, inputs, 0, [size])
        near = (max(0, x0 - blur), max(0, y0 - blur), min(size[0], x1 + blur), min(size[1], y1 + blur))
        for view in (tokens, tokens.thumbnail or tokens):
            r = view.rectangles
            inside = (r[:, 0] >= x0) & (r[:, 1] >= y0) & (r[:, 2] <= x1) & (r[:, 3] <= y1)
            assert changed[view.positions[inside]].all(), (size, (x0, y0, x1, y1))
            touched = set(view.positions[changed[view.positions].numpy()].tolist())
            assert touched <= set(box_positions(view, near).tolist()), (size, (x0, y0, x1, y1))
