"""Qwen2-VL: the resized image as one grid of merged patches, any number of images."""

from __future__ import annotations

from typing import Any

from sparsemm.layouts.tokens import ImageTokens, grid_images

MODEL_TYPES = ("qwen2_vl",)


def fits(width: int, height: int, rows: int, columns: int) -> bool:
    """Returns whether some resize of a `width` x `height` image rounds to this grid.

    Smart resize scales both sides by one factor and rounds each by less than one merged patch.
    """
    return (rows - 1) * width <= (columns + 1) * height and (columns - 1) * height <= (rows + 1) * width


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Returns the grid of merged patches of each image; see `Layout`.

    The processor rounds both sides to whole merged patches (smart resize) and stretches the image to them, so the
    cells are equal parts of the image. `inputs` has image_grid_thw (images of the whole batch, 3) in patches.
    """
    merge, thw = config.vision_config.spatial_merge_size, inputs.get("image_grid_thw")
    grids = [] if thw is None else [(int(h) // merge, int(w) // merge) for _, h, w in thw]
    return grid_images(inputs, row, config.image_token_id, grids, image_sizes, fits)
