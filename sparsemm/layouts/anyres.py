"""Any resolution (LLaVA-NeXT, LLaVA-OneVision): an image padded into a canvas of square tiles, and unpadded again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsemm.layouts.tokens import ImageTokens, Positions, Rectangles, tile

Grid = tuple[tuple[int, int], Rectangles]


def kept(length: int, other: int, cells: int, other_cells: int) -> tuple[int, int]:
    """(cells cut at either end, cells left) along the axis that carries padding, as the model unpads it."""
    new = int(round(length * (other_cells / other), 7))
    padding = (cells - new) // 2
    return padding, max(cells - 2 * padding, 0)


def edges(
    length: int, resized: int, target: int, side: int, patch: int, first: int, count: int, parts: int
) -> np.ndarray:
    """Edges of `parts` equal parts of `count` cells along one axis in original pixels, (parts + 1,) float64.

    The resized image lies centred in a canvas of `target` pixels, made of tiles of `side` pixels with
    `side // patch` cells each. Cell `first + i` of the canvas is mapped back to the image; pixels in cells that
    unpadding cut off (less than half a cell at either end) go to the outermost cell that is left, so that the cells
    tile the image. No cell that is left lies wholly on padding. Whole numbers are divided once, so an edge that is a
    whole number of pixels comes out as that number.
    """
    offset = (target - resized) // 2
    tiles, cells = np.divmod(first + np.arange(parts + 1) * count / parts, side // patch)
    result = np.clip((tiles * side + cells * patch - offset) * length / resized, 0, length)
    result[0], result[-1] = 0.0, length
    return result


def scaled(rows: int, columns: int, most: float) -> tuple[int, int]:
    """(rows, columns) after the model scales a grid down that has clearly more than `most` cells."""
    ratio = math.sqrt(rows * columns / most)
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def grid(config: Any, width: int, height: int, most: float = math.inf) -> Grid:
    """(rows, columns) of the unpadded grid and its rectangles for an image of `width` x `height` pixels.

    Args:
        config: the model's, with image_grid_pinpoints and a square vision tower.
        most: cells beyond which the model scales the grid down; its cells then become larger.
    """
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
    down, across = scaled(rows, columns, most)
    if down == 0 or across == 0:  # extreme shapes: unpadding leaves the thumbnail alone
        return (down, across), np.zeros((0, 4))
    y = edges(height, new_height, target_height, side, patch, first_row, rows, down)
    x = edges(width, new_width, target_width, side, patch, first_column, columns, across)
    return (down, across), tile(y, x)


def listed_sizes(inputs: Any) -> list[tuple[int, int]]:
    """(width, height) in pixels of the images of the whole batch, as the processor saw them."""
    return [(int(width), int(height)) for height, width in inputs["image_sizes"]]


def tile_edges(config: Any, length: int) -> np.ndarray:
    """Cell edges of one tile that shows `length` pixels; pixels behind the last whole patch go to the last cell."""
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    result = np.arange(side // patch + 1) * patch * length / side
    result[-1] = length
    return result


def with_thumbnail(config: Any, size: tuple[int, int], unpadded: Grid, positions: Positions) -> ImageTokens:
    """Tokens of one image: a tile of all of it, stretched, then rows of the grid, each with a newline token behind it.

    Args:
        config: the model's.
        size: (width, height) in pixels.
        unpadded: (rows, columns) and rectangles of the grid.
        positions: of all its visual tokens, int64.
    """
    (rows, columns), rectangles = unpadded
    x, y = (tile_edges(config, length) for length in size)
    side = len(x) - 1
    thumbnail = ImageTokens(positions[: side * side], tile(y, x), (side, side), size)
    cells = positions[side * side :].reshape(rows, columns + 1)[:, :columns].ravel()
    return ImageTokens(cells, rectangles, (rows, columns), size, thumbnail)
