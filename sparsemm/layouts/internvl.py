"""InternVL (the Hugging Face version): tiles of the stretched image, then a thumbnail, all in one run of tokens."""

from __future__ import annotations

from typing import Any

from sparsemm.errors import LayoutError
from sparsemm.layouts.tile_grid import Tile, runs
from sparsemm.layouts.tokens import ImageTokens, Positions, image_positions

MODEL_TYPES = ("internvl",)


def tile_of(config: Any) -> Tile:
    """The vision tower's input: patches of `patch_size`, of which pixel shuffle makes one token each 2 x 2."""
    pixels, patch = config.vision_config.image_size[0], config.vision_config.patch_size[0]
    return Tile(pixels, int(patch / config.downsample_ratio), int(pixels // patch * config.downsample_ratio))


def one_image(tile: Tile, size: tuple[int, int], positions: Positions, where: str) -> ImageTokens:
    """Tokens of one image from its run of positions.

    The number of tiles is the run's; the arrangement is the one whose shape is nearest to the image's among those of
    that number, for the processor took it among more.

    Raises:
        LayoutError: if the run is neither one tile nor several and a thumbnail.
    """
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    views, rest = divmod(len(positions), tile.tokens)
    if rest or views == 2:
        raise LayoutError(f"{len(positions)} visual tokens in a row are no image", where=where)
    whole = tile.whole(size, positions[-tile.tokens :])
    if views == 1:
        return whole
    columns, rows = get_optimal_tiled_canvas(size[::-1], (tile.pixels, tile.pixels), views - 1, views - 1)
    y, x = tile.edges(size[1], rows), tile.edges(size[0], columns)
    return tile.join(size, y, x, positions[: -tile.tokens], whole)


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Visual tokens of every image of one row.

    The processor stretches an image to whole tiles and does not say to how many; the number of tokens between the
    image's start and end token does.

    Args:
        config: the model's config.
        inputs: processor output with input_ids (B, S), padded on either side.
        row: batch row.
        image_sizes: (width, height) in pixels of that row's images, in order; they are trusted.

    Returns:
        one ImageTokens per image: the tiles' cells, and the `thumbnail` that an image of several tiles has.

    Raises:
        LayoutError: if the number of images or of visual tokens does not fit.
    """
    where, tile = f"row {row}", tile_of(config)
    found = runs(image_positions(inputs, row, config.image_token_id))
    if len(found) != len(image_sizes):
        raise LayoutError(f"{len(image_sizes)} image sizes for {len(found)} images", where=where)
    return [one_image(tile, size, one, where) for size, one in zip(image_sizes, found, strict=True)]
