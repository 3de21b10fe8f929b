"""Any-resolution images (LLaVA-NeXT, LLaVA-OneVision): padded to a canvas of square tiles, and unpadded as a grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsemm.layouts.tokens import ImageTokens, Positions, Rectangles, tile

Grid = tuple[tuple[int, int], Rectangles]


def kept(length: int, other: int, cells: int, other_cells: int) -> tuple[int, int]:
    """Returns (cells cut at either end, cells left) along the padded axis, as the model unpads it."""
    new = int(round(length * (other_cells / other), 7))
    padding = (cells - new) // 2
    return padding, max(cells - 2 * padding, 0)


def edges(
    length: int, resized: int, target: int, side: int, patch: int, first: int, count: int, parts: int
) -> np.ndarray:
    """Returns the edges of `parts` equal parts of `count` cells along one axis, (parts + 1,) float64 original pixels.

    The resized image lies centred in a canvas of `target` pixels, made of tiles of `side` pixels with
    `side // patch` cells each. Cell `first + i` of the canvas is mapped back to the image. Pixels in cells that
    unpadding removes (less than half a cell at either end) belong to the outermost remaining cell, so that the cells
    tile the image, and no cell lies on padding alone. Whole numbers are divided once, so an edge that is a whole number
    of pixels is exactly that number.
    """
    offset = (target - resized) // 2
    tiles, cells = np.divmod(first + np.arange(parts + 1) * count / parts, side // patch)
    result = np.clip((tiles * side + cells * patch - offset) * length / resized, 0, length)
    result[0], result[-1] = 0.0, length
    return result


def scaled(rows: int, columns: int, most: float) -> tuple[int, int]:
    """Returns (rows, columns) after the model scales down a grid with clearly more than `most` cells."""
    ratio = math.sqrt(rows * columns / most)
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def grid(config: Any, width: int, height: int, most: float = math.inf) -> Grid:
    """Returns (rows, columns) of the unpadded grid and its rectangles for an image of `width` x `height` pixels.

    Args:
        config: the model's config, with image_grid_pinpoints and a square vision tower.
        width, height: pixels of the image.
        most: number of cells above which the model scales the grid down, to fewer and larger cells.
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
    # The image itself is resized by another rule (get_patch_output_size).
    by_width, by_height = target_width / width, target_height / height
    if by_width < by_height:
        new_width, new_height = target_width, min(math.ceil(height * by_width), target_height)
    else:
        new_width, new_height = min(math.ceil(width * by_height), target_width), target_height
    down, across = scaled(rows, columns, most)
    if down == 0 or across == 0:  # extreme shapes: unpadding leaves only the thumbnail
        return (down, across), np.zeros((0, 4))
    y = edges(height, new_height, target_height, side, patch, first_row, rows, down)
    x = edges(width, new_width, target_width, side, patch, first_column, columns, across)
    return (down, across), tile(y, x)


def listed_sizes(inputs: Any) -> list[tuple[int, int]]:
    """Returns (width, height) in pixels of all images of the batch, as the processor saw them."""
    return [(int(width), int(height)) for height, width in inputs["image_sizes"]]


def tile_edges(config: Any, length: int) -> np.ndarray:
    """Returns the cell edges of a tile of `length` pixels; the rest after the last whole patch is the last cell's."""
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    result = np.arange(side // patch + 1) * patch * length / side
    result[-1] = length
    return result


def with_thumbnail(config: Any, size: tuple[int, int], unpadded: Grid, positions: Positions) -> ImageTokens:
    """Returns the tokens of an image: a stretched thumbnail, then rows of the grid, each ended by a newline token.

    Args:
        config: the model's config.
        size: (width, height) in pixels.
        unpadded: (rows, columns) and rectangles of the grid.
        positions: int64 positions of all its visual tokens.
    """
    (rows, columns), rectangles = unpadded
    x, y = (tile_edges(config, length) for length in size)
    side = len(x) - 1
    thumbnail = ImageTokens(positions[: side * side], tile(y, x), (side, side), size)
    cells = positions[side * side :].reshape(rows, columns + 1)[:, :columns].ravel()
    return ImageTokens(cells, rectangles, (rows, columns), size, thumbnail)
