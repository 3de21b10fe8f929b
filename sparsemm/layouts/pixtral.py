"""Pixtral (in LLaVA's form) and Mistral 3: the stretched image as rows of patches, each closed by a break token."""

from __future__ import annotations

from functools import partial
from typing import Any

from sparsemm.layouts.tokens import ImageTokens, grid_images

MODEL_TYPES = ("llava", "mistral3")
VISION_TYPES = ("pixtral",)  # not LLaVA 1.5's CLIP, which gets a square crop of the image


def fits(width: int, height: int, rows: int, columns: int, pixels: int) -> bool:
    """Returns whether the processor turns a width x height image into rows x columns cells of `pixels`.

    The processor scales both sides down by one factor or not at all, rounds them down to whole pixels, and those up to
    whole cells.
    """
    return (
        (rows - 1) * pixels * width < (columns * pixels + 1) * height
        and (columns - 1) * pixels * height < (rows * pixels + 1) * width
        and (rows - 1) * pixels < height
        and (columns - 1) * pixels < width
    )


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Returns the grid of each image without break and end tokens; see `Layout`.

    `inputs` has image_sizes (images of the whole batch, 2), (height, width) in pixels after the processor stretched
    them to whole cells.
    """
    pixels = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    stretched = inputs.get("image_sizes")
    grids = [] if stretched is None else [(int(h) // pixels, int(w) // pixels) for h, w in stretched]
    return grid_images(inputs, row, config.image_token_id, grids, image_sizes, partial(fits, pixels=pixels))
