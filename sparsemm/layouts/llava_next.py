"""LLaVA-NeXT: a thumbnail, then the unpadded any-resolution grid with one newline token after each row."""

from __future__ import annotations

from typing import Any

from sparsemm.layouts.anyres import grid, listed_sizes, with_thumbnail
from sparsemm.layouts.tokens import ImageTokens, check_seen, first_image, image_positions, split_by_count

MODEL_TYPES = ("llava_next",)


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Returns the high-resolution grid of an image without newline tokens, and its `thumbnail`; see `Layout`.

    The sizes are checked if `inputs` has image_sizes (images of the whole batch, 2), (height, width) in pixels.
    """
    side = config.vision_config.image_size // config.vision_config.patch_size
    token = config.image_token_id

    def counts(grids: list[Any]) -> list[int]:
        return [side * side + rows * (columns + 1) for (rows, columns), _ in grids]

    grids = [grid(config, width, height) for width, height in image_sizes]
    positions = split_by_count(image_positions(inputs, row, token), counts(grids), row)
    if inputs.get("image_sizes") is not None:
        listed = listed_sizes(inputs)
        first = first_image(inputs, row, token, counts([grid(config, *size) for size in listed]))
        check_seen(listed[first : first + len(image_sizes)], image_sizes, row)
    return [with_thumbnail(config, *image) for image in zip(image_sizes, grids, positions, strict=True)]
