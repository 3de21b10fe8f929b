"""Encoded image bytes, and boxes on them, made to fit the record schema or refused."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Sequence

from PIL import Image, UnidentifiedImageError

from sparsemm.datasets.pillow import whole_images
from sparsemm.datasets.records import Entry
from sparsemm.errors import DataError

Box = tuple[float, float, float, float]


def decode(data: bytes, where: str) -> Image.Image:
    """The image as RGB, what is transparent on white; pixels as stored, so that boxes fit (no EXIF rotation).

    Raises:
        DataError: if it is truncated, no image, so large (above 89 million pixels) that it looks like an attack, of a
            depth that has no known white, or a program (EPS).
    """
    try:
        with warnings.catch_warnings(), whole_images():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data))
            if image.format == "EPS":
                raise ValueError("EPS is a program, and would be run")
            image.load()
        image = _of_eight_bits(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"the image is too large: {error}", where=where) from error
    except UnidentifiedImageError as error:  # whose text has an address in memory; reasons are kept, and must repeat
        raise DataError("the image cannot be read: no known format", where=where) from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
        raise DataError(f"the image cannot be read: {error}", where=where) from error


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8, where Pillow's own conversion makes white of all but the darkest 256 shades.

    Raises:
        ValueError: if the pixels may have any value.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(f"pixels of mode {image.mode} have no known white")
    return image.convert("I").point(lambda value: value / 256).convert("L") if image.mode[0] == "I" else image


def bounds(points: Sequence[Sequence[float]], where: str) -> Box:
    """The smallest upright box (x0, y0, x1, y1) around points (x, y).

    Raises:
        DataError: if they are not pairs of finite numbers.
    """
    try:
        xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
        if not all(map(math.isfinite, (*xs, *ys))):  # which min and max may pass over
            raise ValueError("not finite")
        return min(xs), min(ys), max(xs), max(ys)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{points!r:.80} are not points", where=where) from error


def clip(box: Sequence[float], size: tuple[int, int], where: str) -> Box:
    """The part of a box (x0, y0, x1, y1) that is on an image of (width, height) pixels.

    Raises:
        DataError: if it is not four finite numbers, or has no area there.
    """
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"box {box!r:.80} is not four numbers", where=where) from error
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise DataError(f"box {box!r:.80} is not finite", where=where)
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1]))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DataError(f"box {box!r:.80} is empty or outside the {size[0]}x{size[1]} image", where=where)
    return inside


def reading_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Entries by line, top to bottom and left to right, for sources that list them in no order.

    An entry belongs to a line if its middle is within the height of the line's first entry.
    """
    lines: list[list[Entry]] = []
    for entry in sorted(entries, key=lambda one: (one.box[1] + one.box[3], one.box[0])):
        middle = (entry.box[1] + entry.box[3]) / 2
        if lines and lines[-1][0].box[1] <= middle <= lines[-1][0].box[3]:
            lines[-1].append(entry)
        else:
            lines.append([entry])
    return tuple(entry for line in lines for entry in sorted(line, key=lambda one: one.box[0]))
