"""InternVL (the Hugging Face version): tiles of the stretched image, then a thumbnail, all in one run of tokens."""

from __future__ import annotations

from typing import Any

from sparsemm.errors import LayoutError
from sparsemm.layouts.tile_grid import Tile, runs
from sparsemm.layouts.tokens import ImageTokens, Positions, image_positions

MODEL_TYPES = ("internvl",)


def tile_of(config: Any) -> Tile:
    """Returns the vision tower's input: patches of `patch_size`, of which pixel shuffle joins 2 x 2 to a token."""
    pixels, patch = config.vision_config.image_size[0], config.vision_config.patch_size[0]
    return Tile(pixels, int(patch / config.downsample_ratio), int(pixels // patch * config.downsample_ratio))


def one_image(tile: Tile, size: tuple[int, int], positions: Positions, where: str) -> ImageTokens:
    """Returns the tokens of one image from its run of positions.

    The length of the run gives the number of tiles. Among the grids of that many tiles, the processor took the one
    whose shape is nearest to the image's. Raises LayoutError if the run is neither one tile nor several tiles and a
    thumbnail.
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
    """Returns the cells of an image's tiles, with a `thumbnail` if there are several; see `Layout`.

    The processor stretches an image to whole tiles and does not report how many; the number of tokens between the
    image's start and end token shows it. The sizes of the images are not checked.
    """
    where, tile = f"row {row}", tile_of(config)
    images = runs(image_positions(inputs, row, config.image_token_id))
    if len(images) != len(image_sizes):
        raise LayoutError(f"{len(image_sizes)} image sizes for {len(images)} images", where=where)
    return [one_image(tile, size, run, where) for size, run in zip(image_sizes, images, strict=True)]
