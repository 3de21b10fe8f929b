"""Qwen2-VL: the resized image as one grid of merged patches, any number of images."""

from __future__ import annotations

from typing import Any

from sparsemm.errors import LayoutError
from sparsemm.layouts.tokens import ImageTokens, even_edges, first_image, image_positions, split_by_count, tile

MODEL_TYPES = ("qwen2_vl",)


def fits(width: int, height: int, rows: int, columns: int) -> bool:
    """Returns whether some resize of a `width` x `height` image rounds to this grid.

    Smart resize scales both sides by one factor and rounds each by less than one merged patch.
    """
    return (rows - 1) * width <= (columns + 1) * height and (columns - 1) * height <= (rows + 1) * width


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Returns the visual tokens of every image of one row.

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
        LayoutError: if the number of visual tokens or the shape of a grid does not match the images.
    """
    merge = config.vision_config.spatial_merge_size
    thw = inputs.get("image_grid_thw")
    grids = [] if thw is None else [tuple(int(v) for v in grid) for grid in thw]
    counts = [t * (h // merge) * (w // merge) for t, h, w in grids]
    positions_of_row = image_positions(inputs, row, config.image_token_id)
    first = first_image(inputs, row, config.image_token_id, counts)
    of_row = slice(first, first + len(image_sizes))
    parts = split_by_count(positions_of_row, counts[of_row], row)
    if len(parts) != len(image_sizes):
        raise LayoutError(f"{len(image_sizes)} image sizes for {len(parts)} images", where=f"row {row}")
    result = []
    for (width, height), (_, h, w), positions in zip(image_sizes, grids[of_row], parts, strict=True):
        rows, columns = h // merge, w // merge
        if not fits(width, height, rows, columns):
            raise LayoutError(
                f"a {width}x{height} image does not make a grid of {rows} x {columns} tokens",
                where=f"row {row}",
                hint="pass (width, height) of the images as the processor got them, in order",
            )
        rectangles = tile(even_edges(height, rows), even_edges(width, columns))
        result.append(ImageTokens(positions, rectangles, (rows, columns), (width, height)))
    return result
