"""Gemma 3: the stretched image as one fixed grid of pooled patches; pan and scan adds crops along its longer side."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from sparsemm.errors import LayoutError
from sparsemm.layouts.tile_grid import Tile, tile_views
from sparsemm.layouts.tokens import ImageTokens

MODEL_TYPES = ("gemma3",)


def tile_of(config: Any) -> Tile:
    """Returns the vision tower's input: `mm_tokens_per_image` tokens, each the mean of a square of patches."""
    vision, side = config.vision_config, int(config.mm_tokens_per_image**0.5)
    return Tile(vision.image_size, vision.image_size // vision.patch_size // side * vision.patch_size, side)


def most_crops(size: tuple[int, int]) -> int:
    """Returns the most crops that pan and scan makes of (width, height): the rounded ratio of the sides, at least 2."""
    long, short = max(size), min(size)
    return max(2, (2 * long + short) // (2 * short))


def crop_counts(gaps: list[tuple[int, ...]], image_sizes: list[tuple[int, int]], where: str) -> list[int]:
    """Counts the crops of every image of a row, from the tokens between one view and the next.

    The processor does not report how many there are. But it writes a long sentence between an image and its first crop,
    longer than any other gap between views, and the same few tokens between all crops. Raises LayoutError if the number
    of images is another one, or an image has more crops than its shape allows.
    """
    sentence = max(gaps, key=len) if len(gaps) >= len(image_sizes) else None
    counts, at, fits = [], 0, True
    while at <= len(gaps):
        last = at
        if at < len(gaps) and gaps[at] == sentence:
            last = at + 1
            while last < len(gaps) and gaps[last] == gaps[at + 1]:
                last += 1
            fits &= gaps[last : last + 1] != [sentence]  # it follows only an image itself
        counts.append(last - at)
        at = last + 1
    fits &= len(counts) == len(image_sizes)
    if not fits or any(n > most_crops(size) for n, size in zip(counts, image_sizes, strict=True)):
        raise LayoutError(
            f"{len(image_sizes)} image sizes for {len(gaps) + 1} views of images",
            where=where,
            hint="with pan and scan, images come before the text",
        )
    return counts


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Returns the whole image, or with pan and scan its crops with the whole image as `thumbnail`; see `Layout`.

    The sizes of the images are not checked.
    """
    where, tile = f"row {row}", tile_of(config)
    views = tile_views(inputs, row, config.image_token_id, tile)
    ids = np.asarray(inputs["input_ids"][row].cpu())
    gaps = [tuple(ids[a[-1] + 1 : b[0]].tolist()) for a, b in pairwise(views)]
    if len(views) < len(image_sizes):
        raise LayoutError(f"{len(image_sizes)} image sizes for {len(views)} views of images", where=where)
    counts = crop_counts(gaps, image_sizes, where) if views else []
    result, at = [], 0
    for (width, height), crops in zip(image_sizes, counts, strict=True):
        image = tile.whole((width, height), views[at])
        if crops:
            rows, columns = (1, crops) if width >= height else (crops, 1)
            y, x = tile.crop_edges(height, rows), tile.crop_edges(width, columns)
            image = tile.join((width, height), y, x, views[at + 1 : at + 1 + crops], image)
        result.append(image)
        at += 1 + crops
    return result
