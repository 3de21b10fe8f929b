"""The visual tokens of an image: their positions in the prompt, and the part of the image that each one covers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.errors import LayoutError

Positions = NDArray[np.int64]
Rectangles = NDArray[np.float64]


@dataclass(frozen=True)
class ImageTokens:
    """Visual tokens of one image in raster order."""

    positions: Positions  # (N,) int64, indices into the (padded) row of input_ids
    rectangles: Rectangles  # (N, 4) float64, (x0, y0, x1, y1) in pixels of the original image; together they tile it
    grid: tuple[int, int]  # (rows, columns), N = rows * columns
    size: tuple[int, int]  # (width, height) of the original image in pixels
    thumbnail: ImageTokens | None = None  # tokens of a coarser view of the same image, if the family has one


def even_edges(length: int, count: int) -> NDArray[np.float64]:
    """Returns the edges of `count` equal parts of `length` pixels, (count + 1,) float64, each rounded once.

    An edge that is a whole number of pixels is exactly that number (`np.linspace` may miss it by a rounding error, and
    a box that ends there would then touch the next token).
    """
    return np.arange(count + 1) * length / count


def tile(y_edges: NDArray[np.float64], x_edges: NDArray[np.float64]) -> Rectangles:
    """Returns the rectangles between rising edges, in raster order: (rows * columns, 4) float64 of (x0, y0, x1, y1)."""
    y0, x0 = np.meshgrid(y_edges[:-1], x_edges[:-1], indexing="ij")
    y1, x1 = np.meshgrid(y_edges[1:], x_edges[1:], indexing="ij")
    return np.stack([x0, y0, x1, y1], axis=-1).reshape(-1, 4)


def box_positions(tokens: ImageTokens, box: tuple[float, float, float, float]) -> Positions:
    """Returns the positions of the tokens whose rectangle shares a positive area with the box.

    Args:
        tokens: visual tokens of the image.
        box: (x0, y0, x1, y1) in pixels of the original image; it may touch the border.

    Returns:
        (M,) int64, rising.

    Raises:
        LayoutError: if the box is empty, not finite, or reaches outside the image.
    """
    x0, y0, x1, y1 = box
    width, height = tokens.size
    if not np.isfinite(box).all() or not (x0 < x1 and y0 < y1):
        raise LayoutError(f"box {box} is empty or not finite", hint="boxes are (x0, y0, x1, y1) with x0 < x1, y0 < y1")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        hint = "boxes are in pixels of the original image"
        raise LayoutError(f"box {box} reaches outside the {width}x{height} image", hint=hint)
    r = tokens.rectangles
    shared = (np.maximum(r[:, 0], x0) < np.minimum(r[:, 2], x1)) & (np.maximum(r[:, 1], y0) < np.minimum(r[:, 3], y1))
    return np.sort(tokens.positions[shared])  # raster order of cells is not token order if there are several tiles


def image_positions(inputs: Any, row: int, token_id: int) -> Positions:
    """Returns the positions of a row's visual placeholder tokens, (N,) int64.

    Raises LayoutError if the batch has no such row.
    """
    if not 0 <= row < len(inputs["input_ids"]):
        raise LayoutError(f"there is no row {row} in a batch of {len(inputs['input_ids'])}")
    ids = np.asarray(inputs["input_ids"][row].cpu())
    return np.flatnonzero(ids == token_id).astype(np.int64)


def first_image(inputs: Any, row: int, token_id: int, counts: list[int]) -> int:
    """Returns the index of a row's first image in the processor's flat list of all images of the batch.

    Args:
        inputs: processor output with input_ids (B, S).
        row: batch row.
        token_id: id of the visual placeholder token.
        counts: visual tokens of every image of the batch.

    Raises:
        LayoutError: if the images do not exactly fill the rows before this one.
    """
    at = 0
    for earlier in range(row):
        left = len(image_positions(inputs, earlier, token_id))
        while left > 0 and at < len(counts):
            left -= counts[at]
            at += 1
        if left != 0:
            raise LayoutError("visual tokens and the processor's image sizes do not match", where=f"row {earlier}")
    return at


def split_by_count(positions: Positions, counts: list[int], row: int) -> list[Positions]:
    """Splits a row's positions into one part per image.

    Raises LayoutError if the counts do not add up to the number of positions.
    """
    if sum(counts) != len(positions):
        raise LayoutError(
            f"the prompt has {len(positions)} visual tokens, but its images have {sum(counts)}",
            where=f"row {row}",
            hint="pass the sizes of exactly the images of this row, in order; was the prompt truncated?",
        )
    return np.split(positions, np.cumsum(counts)[:-1]) if counts else []


def grid_images(
    inputs: Any,
    row: int,
    token_id: int,
    grids: list[tuple[int, int]],
    image_sizes: list[tuple[int, int]],
    fits: Callable[[int, int, int, int], bool],
) -> list[ImageTokens]:
    """Returns the visual tokens of a row's images where each image is stretched to one grid of cells.

    Args:
        inputs: processor output with input_ids (B, S).
        row: batch row.
        token_id: id of the visual placeholder token.
        grids: (rows, columns) of every image of the batch.
        image_sizes: (width, height) in pixels of the row's images, in order.
        fits: function (width, height, rows, columns) -> whether the processor makes such a grid of such an image.

    Raises:
        LayoutError: if the number of visual tokens or the shape of a grid does not match the images.
    """
    counts = [rows * columns for rows, columns in grids]
    first = first_image(inputs, row, token_id, counts)
    of_row = slice(first, first + len(image_sizes))
    parts = split_by_count(image_positions(inputs, row, token_id), counts[of_row], row)
    if len(parts) != len(image_sizes):
        raise LayoutError(f"{len(image_sizes)} image sizes for {len(parts)} images", where=f"row {row}")
    images = []
    for (width, height), (rows, columns), positions in zip(image_sizes, grids[of_row], parts, strict=True):
        if not fits(width, height, rows, columns):
            raise LayoutError(
                f"a {width}x{height} image does not make a grid of {rows} x {columns} tokens",
                where=f"row {row}",
                hint="pass (width, height) of the images as the processor got them, in order",
            )
        rectangles = tile(even_edges(height, rows), even_edges(width, columns))
        images.append(ImageTokens(positions, rectangles, (rows, columns), (width, height)))
    return images


def check_seen(seen: list[tuple[int, int]], image_sizes: list[tuple[int, int]], row: int) -> None:
    """Checks sizes against those that the processor saw: in another order they may give the same number of tokens.

    Args:
        seen, image_sizes: (width, height) in pixels of the row's images.

    Raises:
        LayoutError: if they differ.
    """
    if seen != [tuple(size) for size in image_sizes]:
        raise LayoutError(
            f"the processor saw images of (width, height) {seen}, not {image_sizes}",
            where=f"row {row}",
            hint="pass the sizes of exactly the images of this row, in order",
        )
