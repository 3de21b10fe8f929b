"""Idefics3 and SmolVLM: tiles with row and column markers, then the whole image once more."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsemm.errors import LayoutError
from sparsemm.layouts.tile_grid import Tile, tile_views
from sparsemm.layouts.tokens import ImageTokens, Positions

MODEL_TYPES = ("idefics3", "smolvlm")


def tile_shapes(ids: np.ndarray, views: list[Positions], where: str) -> list[tuple[int, int]]:
    """Returns (rows, columns) of tiles of every image of a row, (0, 0) for an image that was not split.

    A marker token comes before every view, and at the end of an image. So a view before one marker has a neighbour on
    its right, and one before another token (a newline) ends a row of tiles. One before two markers, or the last one of
    the prompt, shows the whole image and is its last view.

    Args:
        ids: (S,) token ids of the row.
        views: visual tokens of its views.
        where: place for messages.

    Raises:
        LayoutError: if the views do not form rows of tiles and a whole view.
    """
    result, row_ends, count = [], [], 0
    starts, ends = [int(view[0]) for view in views], [int(view[-1]) + 1 for view in views]
    if ends and ends[-1] == len(ids):
        raise LayoutError("the prompt ends within an image", where=where, hint="was it truncated?")
    for end, start in zip(ends, [*starts[1:], ends[-1] + 1] if ends else [], strict=True):
        gap, marker = ids[end:start], ids[ends[-1]]
        count += 1
        if gap[0] != marker:
            row_ends.append(count)
        elif end == ends[-1] or (gap == marker).sum() > 1:
            columns = row_ends[0] if row_ends else 0
            if row_ends != [columns * (i + 1) for i in range(len(row_ends))] or count != len(row_ends) * columns + 1:
                raise LayoutError("the tiles of an image do not form rows", where=where)
            result.append((len(row_ends), columns))
            row_ends, count = [], 0
    return result


def fits(size: tuple[int, int], rows: int, columns: int, pixels: int) -> bool:
    """Returns whether the processor splits an image of (width, height) into rows x columns tiles of `pixels`.

    The processor scales the longer side to whole tiles, rounds the shorter one by at most three pixels, and takes as
    many tiles as cover it.
    """
    along, across = (columns, rows) if size[0] >= size[1] else (rows, columns)
    exact, slack = along * min(size) / max(size), 3 / pixels
    return rows == 0 or exact - slack <= across < exact + 1 + slack


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Returns the cells of an image's tiles with the whole view as `thumbnail`, or the whole view; see `Layout`.

    The processor stretches an image to whole tiles; the tokens between them show how many there are.
    """
    where, vision = f"row {row}", config.vision_config
    side = vision.image_size // vision.patch_size // config.scale_factor
    tile = Tile(vision.image_size, vision.patch_size * config.scale_factor, side)
    views = tile_views(inputs, row, config.image_token_id, tile)
    shapes = tile_shapes(np.asarray(inputs["input_ids"][row].cpu()), views, where)
    if len(shapes) != len(image_sizes):
        raise LayoutError(f"{len(image_sizes)} image sizes for {len(shapes)} images", where=where)
    result, at = [], 0
    for (width, height), (rows, columns) in zip(image_sizes, shapes, strict=True):
        if not fits((width, height), rows, columns, tile.pixels):
            raise LayoutError(
                f"a {width}x{height} image does not make {rows} x {columns} tiles",
                where=where,
                hint="pass (width, height) of the images as the processor got them, in order",
            )
        last = at + rows * columns
        image = tile.whole((width, height), views[last])
        if rows:
            y, x = tile.edges(height, rows), tile.edges(width, columns)
            image = tile.join((width, height), y, x, views[at:last], image)
        result.append(image)
        at = last + 1
    return result
