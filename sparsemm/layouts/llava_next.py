"""LLaVA-NeXT: a thumbnail, then the unpadded any-resolution grid with one newline token after each row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsemm.errors import LayoutError
from sparsemm.layouts.tokens import (
    ImageTokens,
    Rectangles,
    even_edges,
    first_image,
    image_positions,
    split_by_count,
    tile,
)

MODEL_TYPES = ("llava_next",)


def kept(length: int, other: int, cells: int, other_cells: int) -> tuple[int, int]:
    """(cells cut at either end, cells left) along the axis that carries padding, as the model unpads it."""
    new = int(round(length * (other_cells / other), 7))
    padding = (cells - new) // 2
    return padding, max(cells - 2 * padding, 0)


def edges(length: int, resized: int, target: int, side: int, patch: int, first: int, count: int) -> np.ndarray:
    """Cell edges along one axis in original pixels, (count + 1,) float64.

    The resized image lies centred in a canvas of `target` pixels, made of tiles of `side` pixels with
    `side // patch` cells each. Cell `first + i` of the canvas is mapped back to the image; pixels in cells that
    unpadding cut off (less than half a cell at either end) go to the outermost cell that is left, so that the cells
    tile the image. No cell that is left lies wholly on padding. Whole numbers are divided once, so an edge that is a
    whole number of pixels comes out as that number.
    """
    offset = (target - resized) // 2
    tiles, cells = np.divmod(first + np.arange(count + 1), side // patch)
    result = np.clip((tiles * side + cells * patch - offset) * length / resized, 0, length)
    result[0], result[-1] = 0.0, length
    return result


def grid(config: Any, width: int, height: int) -> tuple[tuple[int, int], Rectangles]:
    """(rows, columns) of the unpadded grid and its rectangles for an image of `width` x `height` pixels."""
    from transformers.image_processing_utils import select_best_resolution

    patch, side = config.vision_config.patch_size, config.vision_config.image_size
    target_height, target_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = target_height // side * (side // patch), target_width // side * (side // patch)
    first_row = first_column = 0
    # The same comparison and rounding as the model's unpadding, cell counts included.
    if width / height > columns / rows:
        first_row, rows = kept(height, width, rows, columns)
    else:
        first_column, columns = kept(width, height, columns, rows)
    # The pixels are resized by their own rule (get_patch_output_size).
    by_width, by_height = target_width / width, target_height / height
    if by_width < by_height:
        new_width, new_height = target_width, min(math.ceil(height * by_width), target_height)
    else:
        new_width, new_height = min(math.ceil(width * by_height), target_width), target_height
    if rows == 0 or columns == 0:  # extreme shapes: unpadding leaves the thumbnail alone
        return (rows, columns), np.zeros((0, 4))
    y = edges(height, new_height, target_height, side, patch, first_row, rows)
    x = edges(width, new_width, target_width, side, patch, first_column, columns)
    return (rows, columns), tile(y, x)


def check_sizes(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]], cells: int) -> None:
    """Refuse sizes that the processor did not see: in another order they would give the same number of tokens."""
    listed = [(int(width), int(height)) for height, width in inputs["image_sizes"]]
    shapes = [grid(config, width, height)[0] for width, height in listed]
    at = first_image(inputs, row, config.image_token_id, [cells + rows * (columns + 1) for rows, columns in shapes])
    seen = listed[at : at + len(image_sizes)]
    if seen != [tuple(size) for size in image_sizes]:
        raise LayoutError(
            f"the processor saw images of (width, height) {seen}, not {image_sizes}",
            where=f"row {row}",
            hint="give the sizes of exactly the images of this row, in order",
        )


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Visual tokens of every image of one row.

    Args:
        config: the model's config.
        inputs: processor output with input_ids (B, S), padded on either side, and image_sizes (images of the whole
            batch, 2), (height, width) in pixels; where image_sizes is missing, `image_sizes` is trusted.
        row: batch row.
        image_sizes: (width, height) in pixels of that row's images, in order.

    Returns:
        one ImageTokens per image: the high-resolution grid, newline tokens left out, and its `thumbnail`.

    Raises:
        LayoutError: if the number of visual tokens or the processor's image_sizes do not fit the images.
    """
    side = config.vision_config.image_size // config.vision_config.patch_size
    grids = [grid(config, width, height) for width, height in image_sizes]
    counts = [side * side + rows * (columns + 1) for (rows, columns), _ in grids]
    found = split_by_count(image_positions(inputs, row, config.image_token_id), counts, row)
    if inputs.get("image_sizes") is not None:
        check_sizes(config, inputs, row, image_sizes, side * side)
    result = []
    for size, ((rows, columns), rectangles), positions in zip(image_sizes, grids, found, strict=True):
        width, height = size
        small = tile(even_edges(height, side), even_edges(width, side))
        thumbnail = ImageTokens(positions[: side * side], small, (side, side), size)
        cells = positions[side * side :].reshape(rows, columns + 1)[:, :columns].ravel()
        result.append(ImageTokens(cells, rectangles, (rows, columns), size, thumbnail))
    return result
