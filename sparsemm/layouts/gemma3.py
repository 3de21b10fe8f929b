"""Gemma 3: the stretched image as one fixed grid of pooled patches; pan and scan adds crops along its longer side."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from sparsemm.errors import LayoutError
from sparsemm.layouts.tiles import Tile, runs
from sparsemm.layouts.tokens import ImageTokens, image_positions

MODEL_TYPES = ("gemma3",)


def tile_of(config: Any) -> Tile:
    """The vision tower's input: `mm_tokens_per_image` tokens, each the mean of a square of patches."""
    vision, side = config.vision_config, int(config.mm_tokens_per_image**0.5)
    return Tile(vision.image_size, vision.image_size // vision.patch_size // side * vision.patch_size, side)


def most_crops(size: tuple[int, int]) -> int:
    """Crops that pan and scan makes of (width, height) at most: the rounded ratio of the sides, at least 2."""
    long, short = max(size), min(size)
    return max(2, (2 * long + short) // (2 * short))


def parse(gaps: list[tuple[int, ...]], between: tuple[int, ...]) -> list[int] | None:
    """Crops of every image of a row if `between` is what stands between two crops; None if it cannot be.

    Before the first crop of an image stands a longer gap, the same one everywhere, and neither stands elsewhere.
    """
    counts, intros, others, at = [], set(), set(), 0
    while at <= len(gaps):
        last = at + 1
        while last < len(gaps) and gaps[last] == between:
            last += 1
        cropped = at < len(gaps) and last > at + 1
        counts.append(last - at if cropped else 0)
        if cropped:
            intros.add(gaps[at])
        at = last if cropped else at
        others.update(gaps[at : at + 1])
        at += 1
    possible = len(intros) == 1 and not others & {*intros, between} and len(min(intros)) > len(between)
    return counts if possible else None


def crop_counts(gaps: list[tuple[int, ...]], image_sizes: list[tuple[int, int]], where: str) -> list[int]:
    """Crops of every image of a row, from the tokens between one view and the next.

    The processor does not say how many there are, and writes its own words between the views. What tokens these are
    is not known here, so every kind of gap is tried; the one that leaves the right number of images, with no more
    crops than their shapes allow, is what stands between crops.

    Raises:
        LayoutError: if none does, or more than one.
    """
    views = len(gaps) + 1
    guesses: list[list[int] | None] = [[views - 1]] if len(image_sizes) == 1 else [[0] * views]
    if len(image_sizes) not in (1, views):
        guesses = [parse(gaps, between) for between in sorted(set(gaps))]
    answers = [
        counts
        for counts in guesses
        if counts is not None
        and len(counts) == len(image_sizes)
        and all(n <= most_crops(size) for n, size in zip(counts, image_sizes, strict=True))
    ]
    if len(answers) != 1:
        raise LayoutError(
            f"{len(image_sizes)} image sizes for {views} views of images",
            where=where,
            hint="if pan and scan is on, give one image per prompt",
        )
    return answers[0]


def image_tokens(config: Any, inputs: Any, row: int, image_sizes: list[tuple[int, int]]) -> list[ImageTokens]:
    """Visual tokens of every image of one row.

    Args:
        config: the model's config.
        inputs: processor output with input_ids (B, S), padded on either side, with or without pan and scan.
        row: batch row.
        image_sizes: (width, height) in pixels of that row's images, in order; they are trusted.

    Returns:
        one ImageTokens per image: the whole image, or where there are crops these, and the whole as `thumbnail`.

    Raises:
        LayoutError: if the number of views or of visual tokens does not fit the images.
    """
    where, tile = f"row {row}", tile_of(config)
    found = runs(image_positions(inputs, row, config.image_token_id))
    if any(len(one) != tile.tokens for one in found):
        raise LayoutError(f"a view of an image does not have {tile.tokens} visual tokens", where=where)
    ids = np.asarray(inputs["input_ids"][row].cpu())
    gaps = [tuple(ids[a[-1] + 1 : b[0]].tolist()) for a, b in pairwise(found)]
    if len(found) < len(image_sizes):
        raise LayoutError(f"{len(image_sizes)} image sizes for {len(found)} views of images", where=where)
    counts = crop_counts(gaps, image_sizes, where) if found else []
    result, at = [], 0
    for (width, height), crops in zip(image_sizes, counts, strict=True):
        image = tile.whole((width, height), found[at])
        if crops:
            rows, columns = (1, crops) if width >= height else (crops, 1)
            y, x = tile.crop_edges(height, rows), tile.crop_edges(width, columns)
            image = tile.join((width, height), y, x, found[at + 1 : at + 1 + crops], image)
        result.append(image)
        at += 1 + crops
    return result
