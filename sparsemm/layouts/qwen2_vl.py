"""Qwen2-VL: the resized image as one grid of merged patches, any number of images."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsemm.errors import LayoutError
from sparsemm.layouts.tokens import ImageTokens, image_positions, split_by_count, tile

MODEL_TYPES = ("qwen2_vl",)


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Visual tokens of every image of one row.

    The processor rounds both sides to whole merged patches (smart resize) and stretches the image to them, so the
    cells are equal parts of the image.

    Args:
        config: the model's config.
        inputs: processor output with input_ids (B, S) and image_grid_thw (images of the whole batch, 3) in patches.
        row: batch row.
        image_sizes: (width, height) in pixels of that row's images, in order.

    Returns:
        one ImageTokens per image.

    Raises:
        LayoutError: if the number of visual tokens does not fit the images.
    """
    merge = config.vision_config.spatial_merge_size
    thw = inputs.get("image_grid_thw")
    grids = [] if thw is None else [tuple(int(v) for v in one) for one in thw]
    counts = [t * (h // merge) * (w // merge) for t, h, w in grids]
    at = 0
    for earlier in range(row):  # images are listed flat over the batch: skip those of the rows before
        left = len(image_positions(inputs, earlier, config.image_token_id))
        while left > 0 and at < len(counts):
            left -= counts[at]
            at += 1
        if left != 0:
            raise LayoutError("visual tokens and image_grid_thw do not fit", where=f"row {earlier}")
    mine = slice(at, at + len(image_sizes))
    found = split_by_count(image_positions(inputs, row, config.image_token_id), counts[mine], row)
    if len(found) != len(image_sizes):
        raise LayoutError(f"{len(image_sizes)} image sizes for {len(found)} images", where=f"row {row}")
    result = []
    for (width, height), (_, h, w), positions in zip(image_sizes, grids[mine], found, strict=True):
        rows, columns = h // merge, w // merge
        rectangles = tile(np.linspace(0, height, rows + 1), np.linspace(0, width, columns + 1))
        result.append(ImageTokens(positions, rectangles, (rows, columns), (width, height)))
    return result
