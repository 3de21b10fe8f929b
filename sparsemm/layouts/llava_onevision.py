"""LLaVA-OneVision: LLaVA-NeXT's tokens with a limit on the grid; each of several images in a prompt is one square."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsemm.layouts.anyres import Grid, grid, listed_sizes, tile_edges, with_thumbnail
from sparsemm.layouts.tokens import (
    ImageTokens,
    Positions,
    check_seen,
    first_image,
    image_positions,
    split_by_count,
    tile,
)

MODEL_TYPES = ("llava_onevision",)


def unpadded(config: Any, size: tuple[int, int]) -> Grid:
    """Returns (rows, columns) and rectangles of a prompt's only image; "anyres_max_9" allows nine tiles of cells."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return grid(config, *size, most=int(config.vision_aspect_ratio.rpartition("_")[2]) * side**2)


def squared(config: Any, size: tuple[int, int], positions: Positions) -> ImageTokens:
    """Returns the tokens of an image padded to a square, in its centre, without cells that are all padding.

    Args:
        config: the model's config.
        size: (width, height) in pixels.
        positions: (side * side + 1,) int64, the last one of a newline token.
    """
    longest = max(size)
    edges = tile_edges(config, longest)
    side = len(edges) - 1

    def axis(length: int) -> tuple[Positions, np.ndarray]:
        ends = np.clip(edges - (longest - length) // 2, 0, length)
        cells = np.flatnonzero(np.diff(ends) > 0)
        return cells, np.append(ends[cells], length)

    (columns, x), (rows, y) = (axis(length) for length in size)
    cells = positions[:-1].reshape(side, side)[np.ix_(rows, columns)].ravel()
    return ImageTokens(cells, tile(y, x), (len(rows), len(columns)), size)


def alone_flags(inputs: Any) -> list[bool]:
    """Returns for every image of the batch whether the processor took it for the only one of its prompt."""
    if inputs.get("image_sizes") is None:
        return []
    counts = inputs.get("batch_num_images")
    if counts is None:
        return [True] * len(inputs["image_sizes"])
    return [int(count) == 1 for count in counts for _ in range(int(count))]


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Returns the visual tokens of a row's images without newline tokens; see `Layout`.

    The only image of a prompt has the high-resolution grid with its `thumbnail`; each of several images has the cells
    of a square that lie on it. `inputs` has image_sizes (images of the whole batch, 2), (height, width) in pixels, and
    batch_num_images.
    """
    side = config.vision_config.image_size // config.vision_config.patch_size
    listed = listed_sizes(inputs) if inputs.get("image_sizes") is not None else []
    grids = [unpadded(config, size) if alone else None for size, alone in zip(listed, alone_flags(inputs), strict=True)]
    counts = [side * side + (1 if cells is None else cells[0][0] * (cells[0][1] + 1)) for cells in grids]
    first = first_image(inputs, row, config.image_token_id, counts)
    of_row = slice(first, first + len(image_sizes))
    parts = split_by_count(image_positions(inputs, row, config.image_token_id), counts[of_row], row)
    check_seen(listed[of_row], image_sizes, row)
    return [
        squared(config, size, positions) if cells is None else with_thumbnail(config, size, cells, positions)
        for size, cells, positions in zip(image_sizes, grids[of_row], parts, strict=True)
    ]
